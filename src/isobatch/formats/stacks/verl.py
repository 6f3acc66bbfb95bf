"""verl: prompts, rollouts, the optimizer's batch and micro-batches of reinforcement learning on language models."""

from isobatch.formats.acting import devices_of_a_model
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import on_nodes
from isobatch.formats.stacks.words import beside_muon, betas, clip, has, optimizer, share_of_peak

_ACTOR = "actor_rollout_ref.actor"
_OPTIM = f"{_ACTOR}.optim"
_INERT = (
    "actor_rollout_ref.rollout actor_rollout_ref.ref algorithm reward_model data.val_batch_size "
    "trainer.total_epochs data.max_prompt_length "
    "actor_rollout_ref.actor.clip_ratio custom_reward_function actor_rollout_ref.actor.clip_ratio_low "
    "actor_rollout_ref.actor.use_dynamic_bsz actor_rollout_ref.actor.ppo_max_token_len_per_gpu "
    "actor_rollout_ref.actor.clip_ratio_high actor_rollout_ref.actor.ppo_epochs "
    "actor_rollout_ref.actor.loss_agg_mode actor_rollout_ref.actor.kl_loss_coef actor_rollout_ref.model "
    "trainer.total_training_steps actor_rollout_ref.actor.optim.optimizer_impl "
    "actor_rollout_ref.actor.optim.use_checkpoint_opt_param_scheduler actor_rollout_ref.actor.optim.betas"
)
_MEGATRON = ("megatron", "optim.lr_decay_style", "optim.min_lr", "optim.lr_decay_steps", "optim.lr_warmup_init")
"""Keys of the actor by which its trainer is Megatron, whose optimizer has words of its own."""


def read(reader: Reader) -> None:
    """Read the overrides or the YAML: samples of the clock are responses."""
    draft = reader.draft
    prompts = reader.whole("data.train_batch_size", default=1024, low=1)
    answers = reader.whole("actor_rollout_ref.rollout.n", default=1, low=1)
    update = reader.whole(f"{_ACTOR}.ppo_mini_batch_size", default=256, low=1)
    micro = reader.whole(f"{_ACTOR}.ppo_micro_batch_size_per_gpu", default=None)
    count, nodes = (
        reader.whole("trainer.n_gpus_per_node", default=None),
        reader.whole("trainer.nnodes", default=1, low=1),
    )
    split = devices_of_a_model(reader.source.tree)
    told = count.value * nodes.value // split if count.value and count.value * nodes.value % split == 0 else None
    devices = reader.devices("micro-batches are per GPU", default=told)
    n = answers.value
    draft.values |= {"batch": update.value * n, "devices": devices}
    if micro.value:
        draft.values["micro"] = micro.value
        reader.link("micro", micro, lambda view: view.micro, whole=True, least=1)
    if count.said and told:
        on_nodes(reader, count, nodes, split)
    reader.keeps_batch, reader.per_device = True, False
    reader.link(
        "batch",
        update,
        lambda view: view.batch / n,
        words=f"prompts of one update, {n} responses each",
        whole=True,
        least=1,
    )
    ratio = prompts.value / update.value
    reader.link("rollout", prompts, lambda view: view.batch / n * ratio, words="prompts of a rollout: the updates of a "
                "rollout stay, so that data are as old as before", whole=True, least=1)  # fmt: skip
    drawn = reader.whole("data.gen_batch_size", default=None, low=1)
    if drawn.value:
        often = drawn.value / update.value
        words = "prompts of which a rollout keeps a part"
        reader.link("rollout", drawn, lambda view: view.batch / n * often, words=words, whole=True, least=1)
    megatron = _on_megatron(reader)
    _optimizer(reader, megatron)
    _length(reader, prompts, n, ratio)
    _schedule(reader, prompts.value * n, ratio, megatron)
    times = reader.whole(f"{_ACTOR}.ppo_epochs", default=1, low=1).value
    reader.note(
        f"one rollout is {prompts.value} prompts x {n} responses, in {ratio * times:g} updates of {update.value * n} "
        "responses"
    )
    _critic(reader, update.value, prompts.value * n, ratio)
    reader.inert(_INERT)


def _on_megatron(reader: Reader) -> bool:
    told = str(reader.find(f"{_ACTOR}.strategy", default="").value)
    named = "megatron" in str(reader.find("config_name", default="").value)
    return told == "megatron" or named or reader.has(*(f"{_ACTOR}.{key}" for key in _MEGATRON))


def _optimizer(reader: Reader, megatron: bool) -> None:
    """Enter FSDP's optimizer by torch's names; Megatron's, whose betas its config hands to nobody."""
    more = f"{_OPTIM}.override_optimizer_config"
    word = reader.word(f"{_OPTIM}.optimizer", default="adam" if megatron else "AdamW")
    name = optimizer(reader, word, adam="adamw" if megatron else "adam")
    reader.say("lr", reader.number(f"{_OPTIM}.lr", default=1e-6))
    if megatron:
        one, two = reader.number(f"{more}.adam_beta1", default=0.9), reader.number(f"{more}.adam_beta2", default=0.999)
        eps = reader.number(f"{more}.adam_eps", default=1e-8)
        if name == "muon":
            reader.say("momentum", reader.number(f"{_OPTIM}.muon_momentum", default=0.95))
            beside_muon(reader, None, eps)
        elif name == "sgd":
            reader.say("momentum", reader.number(f"{more}.sgd_momentum", default=0.9))
        for path, found in (("beta1", one), ("beta2", two), ("eps", eps)) if has(name, "betas") else ():
            if found.said:
                reader.say(path, found)
            else:
                reader.fix(path, found.value, "Megatron's Adam, unless override_optimizer_config says it")
        reader.note("on Megatron verl hands optim.betas to nobody: its moments are Megatron's own")
    else:
        if has(name, "betas"):
            betas(reader, *reader.pair(f"{_OPTIM}.betas", default=(0.9, 0.999)))
            eps = reader.number(f"{more}.eps", default=1e-8)
            if eps.said:
                reader.say("eps", eps)
            else:
                reader.fix("eps", 1e-8, "torch's AdamW")
        elif has(name, "momentum"):
            reader.say("momentum", reader.number(f"{more}.momentum", default=0.0))
    reader.say("weight_decay", reader.number(f"{_OPTIM}.weight_decay", default=0.01))
    clip(reader, reader.number(f"{_ACTOR}.grad_clip", f"{_OPTIM}.clip_grad", default=1.0))


def _critic(reader: Reader, update: int, rollout: int, ratio: float) -> None:
    """Enter the critic's own rate, decay and batches: it is updated on the same rollouts, as often as the actor."""
    if not reader.table("critic"):
        return
    rate, decay = reader.number("critic.optim.lr", default=None), reader.number("critic.optim.weight_decay")
    if rate.value:
        path, at = f"groups[{len(reader.draft.groups)}]", ("lr", "weight_decay")
        reader.draft.groups.append({"name": "critic", "match": "^critic"})
        for field, found in zip(at, (rate, decay), strict=True):
            if found.value is not None:
                reader.draft.groups[-1][field] = float(found.value)
                if found.value:
                    reader.link(f"{path}.{field}", found, lambda view, where=f"{path}.{field}": view[where])
    warm = reader.number("critic.optim.lr_warmup_steps", default=-1, low=-1)
    if warm.value > 0:
        reader.draft.spans["critic_warms"] = f"{warm.value * rollout} samples"
        reader.link("critic_warms", warm, lambda view: view.steps("critic_warms") / ratio, words="rollouts", whole=True,
                    least=1)  # fmt: skip
    size = reader.whole("critic.ppo_mini_batch_size", default=None, low=1)
    if size.value:
        ratio = size.value / update
        reader.link("critic", size, lambda view: view.batch / reader.draft.values["batch"] * update * ratio,
                    words="prompts of one update of the critic", whole=True, least=1)  # fmt: skip
    for key in ("ppo_micro_batch_size_per_gpu", "forward_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu"):
        reader.inert(f"critic.{key}")
    reader.inert("critic.model", "critic.ppo_epochs", "critic.cliprange_value", "critic.optim.lr_warmup_steps_ratio")
    reader.inert("critic.grad_clip", "critic.optim.clip_grad", "critic.optim.lr_decay_style", "critic.model_config")


def _length(reader: Reader, prompts: Found, n: int, ratio: float) -> None:
    draft = reader.draft
    steps = reader.whole("trainer.total_training_steps", default=None)
    rollout = prompts.value * n
    if steps.value:
        draft.spans["length"] = f"{steps.value * rollout} samples"
        reader.link("length", steps, lambda view: view.steps("length") / ratio, words="rollouts", whole=True, least=1)
    else:
        epochs = reader.number("trainer.total_epochs", default=30)
        size = reader.data_size("total_epochs are passes over the prompts; how many prompts")
        draft.data_size = size * n
        draft.spans["length"] = f"{epochs.value:.15g} epochs"
    for key, name in (("trainer.save_freq", "checkpoints"), ("trainer.test_freq", "evaluation"),
                      ("trainer.critic_warmup", "critic_warmup"),
                      (f"{_OPTIM}.total_training_steps", "scheduled")):  # fmt: skip
        often = reader.whole(key, default=None, low=-1)
        if often.value and often.value > 0:
            draft.spans[name] = f"{often.value * rollout} samples"
            reader.link(name, often, lambda view, name=name: view.steps(name) / ratio, words="rollouts", whole=True,
                        least=1)  # fmt: skip


def _rollouts(reader: Reader, name: str, found: Found, rollout: int, ratio: float) -> None:
    """Enter a span of the actor's scheduler, which steps once a rollout."""
    reader.draft.spans[name] = f"{found.value * rollout} samples"
    reader.link(name, found, lambda view: view.steps(name) / ratio, whole=True, least=1,
                words="rollouts: the actor's scheduler steps once each")  # fmt: skip


def _schedule(reader: Reader, rollout: int, ratio: float, megatron: bool) -> None:
    draft = reader.draft
    falls = reader.whole(f"{_OPTIM}.lr_decay_steps", default=None) if megatron else Found((), None)
    if falls.value:
        _rollouts(reader, "falls", falls, rollout, ratio)
    else:
        draft.spans["falls"] = draft.spans["length"]
    warm = reader.number(f"{_OPTIM}.lr_warmup_steps", default=-1, low=-1)
    share = reader.number(f"{_OPTIM}.lr_warmup_steps_ratio", default=0.0)
    if warm.value > 0:
        _rollouts(reader, "warmup", warm, rollout, ratio)
    elif share.value:
        draft.spans["warmup"] = f"{share.value * draft.samples('falls'):.17g} samples"
        reader.link("warmup", share, lambda view: view.samples("warmup") / view.samples("falls"),
                    words="share of the decay" if falls.value else "share of the run")  # fmt: skip
    if megatron:
        _megatrons(reader, rollout, ratio)
        return
    kind = str(reader.find(f"{_OPTIM}.warmup_style", f"{_OPTIM}.lr_scheduler_type", default="constant").value)
    least = reader.number(f"{_OPTIM}.min_lr_ratio", default=0.0).value
    if reader.number(f"{_OPTIM}.num_cycles", default=0.5).value != 0.5 and kind != "constant":
        reader.unread(f"{_OPTIM}.num_cycles", "another course of the cosine, in shares of the run, which stay")
    fall = {"by": "cosine", "to": least}
    draft.rest = [fall if kind == "cosine" else {"by": "hold"}]
    if kind == "wsd":
        flat = reader.number(f"{_OPTIM}.lr_wsd_stable_steps_ratio", default=0.9).value
        left = draft.samples("length") - (draft.samples("warmup") if "warmup" in draft.spans else 0.0)
        draft.spans["stable"] = f"{max(left, 0.0) * flat:.17g} samples"
        draft.rest = [{"span": "stable", "by": "hold"}, fall]
    elif kind not in ("constant", "cosine"):
        reader.unread(f"{_OPTIM}.lr_scheduler_type", f"{kind} has a course of its own; it is left as it is")


def _megatrons(reader: Reader, rollout: int, ratio: float) -> None:
    """Enter the course that Megatron's scheduler takes, counted in rollouts."""
    draft = reader.draft
    start = reader.number(f"{_OPTIM}.lr_warmup_init", default=0.0)
    if start.value:
        draft.warmup_from = share_of_peak(reader, "curves.lr", start)
    least = reader.number(f"{_OPTIM}.min_lr", default=0.0)
    part = share_of_peak(reader, "schedule.final", least) if least.value else 0.0
    style = str(reader.word(f"{_OPTIM}.lr_decay_style", default="constant").value).lower()
    run, falls = draft.samples("length"), draft.samples("falls")
    warm = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    draft.spans["fall"] = f"{max(falls - warm, 0.0):.17g} samples"
    if style in ("linear", "cosine"):
        fall = {"by": style, "to": part}
        draft.rest = [fall] if falls == run else [{"span": "fall", **fall}, *([{"by": "hold"}] if falls < run else [])]
        return
    draft.rest = [{"by": "hold"}]
    ends = reader.whole(f"{_OPTIM}.lr_wsd_decay_steps", default=None)
    if ends.value:
        _rollouts(reader, "decay", ends, rollout, ratio)
    if style != "constant":
        reader.unread(f"{_OPTIM}.lr_decay_style", f"{style} has a course of its own; it is drawn as a constant")


FORMAT = Format(
    "verl",
    "verl",
    {
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref": 3,
        "data.train_batch_size": 1,
        "algorithm.adv_estimator": 1,
    },
    read,
    "verl-project/verl ppo_trainer.yaml, config/optim/{fsdp,megatron}.yaml (2026-11)",
)
