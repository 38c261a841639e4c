"""The table of claims."""

from shoal.reproduce import (
    ad_psgd_learning,
    ad_psgd_speed,
    compressed,
    d2,
    katyusha_x,
    pareto,
    signsgd,
    speed_over_grpc,
)
from shoal.reproduce.lab import Claim

CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            "ad-psgd-speed",
            "One slow worker of 16 costs AD-PSGD no more than itself, one slow link little; all-reduce waits.",
            ad_psgd_speed.experiment,
            speed_over_grpc.experiment,
        ),
        Claim(
            "ad-psgd-iid",
            "On equal data a gradient of AD-PSGD is worth one of all-reduce, with a slow worker and without.",
            ad_psgd_learning.iid,
        ),
        Claim(
            "ad-psgd-bias",
            "Negative: on unequal data AD-PSGD weighs workers by their speed; the pairwise correction does not.",
            ad_psgd_learning.bias,
        ),
        Claim("d2", "On unlike data D2 ends where SGD on all the data does, D-PSGD far above.", d2.experiment),
        Claim(
            "signsgd",
            "A vote of signs is as good as full precision, survives 3 attackers of 7, and breaks on unlike data.",
            signsgd.experiment,
        ),
        Claim(
            "katyusha-x",
            "One line makes SVRG three times as fast on sums of non-convex terms, on any number of workers.",
            katyusha_x.experiment,
        ),
        Claim(
            "compressed",
            "Packed models: AD-PSGD and D2 end where they do in full, for less than a seventh of the bytes.",
            compressed.experiment,
        ),
        Claim(
            "pareto",
            "All algorithms side by side: loss against bytes and against time, on equal and on unlike data.",
            pareto.experiment,
        ),
    )
}
