"""Names of torch's optimizers; every other class is named by its import path, `torch.optim.Rprop`."""

from flambeau.registry import register

register.alias("optimizer", "sgd", "torch.optim.SGD")
register.alias("optimizer", "adam", "torch.optim.Adam")
register.alias("optimizer", "adamw", "torch.optim.AdamW")
register.alias("optimizer", "nadam", "torch.optim.NAdam")
register.alias("optimizer", "radam", "torch.optim.RAdam")
register.alias("optimizer", "adamax", "torch.optim.Adamax")
register.alias("optimizer", "adagrad", "torch.optim.Adagrad")
register.alias("optimizer", "adadelta", "torch.optim.Adadelta")
register.alias("optimizer", "adafactor", "torch.optim.Adafactor")
register.alias("optimizer", "rmsprop", "torch.optim.RMSprop")
