"""Tasks that ship, by name, each where `load_task` finds it; imported only when one is asked for."""

BY_NAME = {
    "digits": "shoal.data.digits:Digits",
    "mnist": "shoal.data.images:MNIST",
    "fashion-mnist": "shoal.data.images:FashionMNIST",
    "cifar10": "shoal.data.images:CIFAR10",
    "quadratic": "shoal.data.quadratic:Quadratic",
}
