"""Plans of whole recipes by hand: from the tables of a TOML file, in plain arithmetic, to another batch."""

import math

FLOORS = (0.5, 0.95)
LINEAR = {"sgd", "lars"}


def samples(text, values):
    """A span in the recipe's unit: "30 epochs" of data_size, "500 steps" of batch.size, or the unit itself."""
    number, unit = text.split()
    size = {"epoch": values.get("data_size", 0), "step": values["batch"]["size"]}.get(unit.rstrip("s"), 1)
    return float(number.replace("_", "")) * size


def floored(beta, kappa, floor):
    moved = math.exp(kappa * math.log(beta))
    return moved if moved > min(beta, floor) else min(beta, floor)


def optimizer(o, kappa, summed=False):
    """The numbers of an optimizer's table at kappa times the batch."""
    mu = o.get("momentum", 0.0)
    new_mu = math.exp(kappa * math.log(mu)) if mu else 0.0
    plain = o["lr"] * (kappa if o["name"] in LINEAR else math.sqrt(kappa))
    full = plain * (1 - new_mu) / (1 - mu)
    grows = summed and o["name"] == "sgd"
    found = {"lr": full / kappa if grows else full}
    if mu:
        found["momentum"] = new_mu
    if o["name"].startswith("adam"):
        b1, b2 = o.get("betas", [0.9, 0.999])
        found |= {"betas[0]": floored(b1, kappa, FLOORS[0]), "betas[1]": floored(b2, kappa, FLOORS[1])}
    if o["name"] == "rmsprop":
        found["alpha"] = floored(o.get("alpha", 0.99), kappa, FLOORS[1])
    if o["name"] not in LINEAR:
        share = plain / (kappa * o["lr"])
        found["eps"] = o.get("eps", 1e-8) * (share * share if o.get("eps_inside") else share)
    if o.get("weight_decay"):
        found["weight_decay"] = o["weight_decay"] * decay_factor(o, kappa, found["lr"], summed)
    if o.get("clip"):
        found["clip"] = o["clip"] * (kappa if summed else 1)
    return found


def decay_factor(o, kappa, new_lr, summed):
    if o.get("decay") == "independent":
        return kappa
    if o["name"] == "adamw":
        return kappa * o["lr"] / new_lr
    return kappa if summed and o["name"] == "sgd" else 1.0


def plan(values, size, micro=None, devices=None):
    """Every number of a plan: key -> becomes; spans in samples."""
    batch, o = values["batch"], values["optimizer"]
    kappa, summed = size / batch["size"], batch.get("reduction", "mean") != "mean"
    old = batch.get("devices", 1), batch.get("micro") or batch["size"] / batch.get("devices", 1)
    new_devices = devices or old[0]
    new = new_devices, micro or batch.get("micro") or size / new_devices
    found = {"batch.size": size, "batch.accumulation": size / (new[0] * new[1])}
    found |= {f"optimizer.{key}": value for key, value in optimizer(o, kappa, summed).items()}
    for group in values.get("groups", ()):
        own = {**o, **{key: value for key, value in group.items() if key in ("lr", "weight_decay", "eps")}}
        own["lr"] *= group.get("lr_scale", 1.0)
        moved = optimizer({**own, "weight_decay": own.get("weight_decay") or 1.0}, kappa, summed)
        place = f"groups.{group['name']}"
        if "lr" in group:
            found[f"{place}.lr"] = moved["lr"]
        else:
            found[f"{place}.lr_scale"] = group.get("lr_scale", 1.0)
        if "weight_decay" in group:
            found[f"{place}.weight_decay"] = moved["weight_decay"] * (1.0 if group["weight_decay"] else 0.0)
    return found | moving(values) | averages(values, kappa) | norms(values, new, old)


def moving(values):
    """What stays in samples, or stays a share."""
    found = {"schedule.length": samples(values["schedule"]["length"], values)}
    for name, segments in values.get("curves", {}).items():
        for index, segment in enumerate(segments):
            for key in ("span", "every", "scale"):
                if key in segment:
                    found[f"curves.{name}.{index}.{key}"] = samples(segment[key], values)
            for key in ("start", "to"):
                if key in segment:
                    found[f"curves.{name}.{index}.{key}"] = segment[key]
    return found | {f"spans.{name}": samples(span, values) for name, span in values.get("spans", {}).items()}


def averages(values, kappa):
    ema, found = values.get("ema", {}), {}
    if "decay" in ema:
        found["ema.decay"] = math.exp(kappa * math.log(ema["decay"]))
    if "start" in ema:
        found["ema.start"] = samples(ema["start"], values)
    ramp = ema.get("ramp", {})
    if "tau" in ramp:
        found["ema.ramp.tau"] = samples(ramp["tau"], values)
    return found | ({"ema.ramp.std": ramp["std"]} if "std" in ramp else {})


def norms(values, new, old):
    if "batch_norm" not in values:
        return {}
    norm = values["batch_norm"]
    ratio = new[1] / old[1] * (new[0] / old[0] if norm.get("synchronised") else 1)
    return {"batch_norm.momentum": 1 - math.exp(ratio * math.log(1 - norm["momentum"]))}
