"""verl: prompts, rollouts, the optimizer's batch and micro-batches of reinforcement learning on language models."""

from isobatch.formats.acting import devices_of_a_model
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import on_nodes
from isobatch.formats.stacks.words import clip

_ACTOR = "actor_rollout_ref.actor"
_INERT = (
    "actor_rollout_ref.rollout actor_rollout_ref.ref algorithm reward_model data.val_batch_size "
    "trainer.total_epochs data.max_prompt_length "
    "actor_rollout_ref.actor.clip_ratio custom_reward_function actor_rollout_ref.actor.clip_ratio_low "
    "actor_rollout_ref.actor.use_dynamic_bsz actor_rollout_ref.actor.ppo_max_token_len_per_gpu "
    "actor_rollout_ref.actor.clip_ratio_high actor_rollout_ref.actor.ppo_epochs "
    "actor_rollout_ref.actor.loss_agg_mode actor_rollout_ref.actor.kl_loss_coef actor_rollout_ref.model "
    "trainer.total_training_steps"
)


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
    draft.values |= {"batch": update.value * n, "devices": devices, "name": "adamw"}
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
    reader.say("lr", reader.number(f"{_ACTOR}.optim.lr", default=1e-6))
    one, two = reader.pair(f"{_ACTOR}.optim.betas", default=(0.9, 0.999))
    reader.say("beta1", one)
    reader.say("beta2", two)
    reader.fix("eps", 1e-8, "torch's AdamW")
    reader.say("weight_decay", reader.number(f"{_ACTOR}.optim.weight_decay", default=0.01))
    clip(reader, reader.number(f"{_ACTOR}.grad_clip", default=1.0))
    _length(reader, prompts, n, ratio)
    times = reader.whole(f"{_ACTOR}.ppo_epochs", default=1, low=1).value
    reader.note(
        f"one rollout is {prompts.value} prompts x {n} responses, in {ratio * times:g} updates of {update.value * n} "
        "responses"
    )
    _critic(reader, update.value)
    reader.inert(_INERT)


def _critic(reader: Reader, update: int) -> None:
    """Enter the critic's own rate and batches: it is updated on the same rollouts, as often as the actor."""
    if not reader.table("critic"):
        return
    rate = reader.number("critic.optim.lr", default=None)
    if rate.value:
        path = f"groups[{len(reader.draft.groups)}].lr"
        reader.draft.groups.append({"name": "critic", "match": "^critic", "lr": float(rate.value)})
        reader.link(path, rate, lambda view: view[path])
    size = reader.whole("critic.ppo_mini_batch_size", default=None, low=1)
    if size.value:
        ratio = size.value / update
        reader.link("critic", size, lambda view: view.batch / reader.draft.values["batch"] * update * ratio,
                    words="prompts of one update of the critic", whole=True, least=1)  # fmt: skip
    for key in ("ppo_micro_batch_size_per_gpu", "forward_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu"):
        reader.inert(f"critic.{key}")
    reader.inert("critic.model", "critic.ppo_epochs", "critic.cliprange_value", "critic.optim.lr_warmup_steps_ratio")
    reader.note("the critic's decay and warm-up have no place of their own in the plan: its rate moves, they stay")


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
                      (f"{_ACTOR}.optim.total_training_steps", "scheduled")):  # fmt: skip
        often = reader.whole(key, default=None, low=-1)
        if often.value and often.value > 0:
            draft.spans[name] = f"{often.value * rollout} samples"
            reader.link(name, often, lambda view, name=name: view.steps(name) / ratio, words="rollouts", whole=True,
                        least=1)  # fmt: skip
    warm = reader.number(f"{_ACTOR}.optim.lr_warmup_steps", default=-1, low=-1)
    share = reader.number(f"{_ACTOR}.optim.lr_warmup_steps_ratio", default=0.0)
    if warm.value > 0:
        draft.spans["warmup"] = f"{warm.value * rollout} samples"
        words = "rollouts: the actor's scheduler steps once each"
        reader.link("warmup", warm, lambda view: view.steps("warmup") / ratio, words=words, whole=True, least=1)
    elif share.value:
        reader.span("warmup", share, "length")
    kind = str(
        reader.find(f"{_ACTOR}.optim.warmup_style", f"{_ACTOR}.optim.lr_scheduler_type", default="constant").value
    )
    least = reader.number(f"{_ACTOR}.optim.min_lr_ratio", default=0.0).value
    draft.rest = [{"by": "cosine", "to": least} if kind == "cosine" else {"by": "hold"}]


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
    "verl-project/verl ppo_trainer.yaml (2026-11)",
)
