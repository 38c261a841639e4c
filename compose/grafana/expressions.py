"""What the dashboards' expressions are made of.

Series carry the address that was scraped; `shoal_info` says which node that is. So most expressions are joined with it,
which also keeps those apart that are chosen by a dashboard's variables.
"""

SHOALS = "label_values(shoal_info, shoal)"
NODES = 'label_values(shoal_info{shoal=~"$shoal", role="node"}, node)'
COORDINATORS = 'label_values(shoal_info{shoal=~"$shoal", role="coordinator"}, node)'


def rate(counter: str, **labels: str) -> str:
    """What it grows by in a second."""
    chosen = ", ".join(f'{label}=~"{value}"' for label, value in labels.items())
    return f"rate({counter}{{{chosen}}}[$__rate_interval])" if chosen else f"rate({counter}[$__rate_interval])"


def quantile(part: float, histogram: str) -> str:
    """What that part of the observations lies below, of each process."""
    return f"histogram_quantile({part}, sum by (job, instance, le) ({rate(f'{histogram}_bucket')}))"


def here(expression: str, role: str = "node", also: str = "") -> str:
    """With the names of nodes, for the shoals that are chosen above; `also` narrows it further."""
    chosen = f'shoal_info{{shoal=~"$shoal", role=~"{role}"{also}}}'
    return f"{expression} * on (job, instance) group_left (node, shoal) {chosen}"


def one(expression: str) -> str:
    """For the nodes that are chosen above."""
    return here(expression, also=', node=~"$node"')


def middle(expression: str) -> str:
    """For the coordinators that are chosen above."""
    return here(expression, role="coordinator", also=', node=~"$coordinator"')


SENT_VECTORS = rate("shoal_vector_bytes_total", direction="sent")
OFFERED = rate("shoal_exchanges_total", role="active")
A_STEP = "on (job, instance) group_left () " + rate("shoal_gradients_total")
