"""One safetensors file of the averaged weights, as transformers, timm and plain torch load it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.peers import peer
from torch import nn

import isobatch as ib
from isobatch.errors import InputError
from isobatch.integrations import save_average
from isobatch.integrations.export import load_state, save_state


def moved(model, half_life=8):
    ema = ib.ModelEMA(model, half_life=half_life)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    ema.update(samples=8)
    return ema


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 3), nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("name", ["", "weights.safetensors", "deep/er/weights.safetensors"])
def test_a_plain_model_gets_every_name_of_its_state(tmp_path, name):
    model = Tied()
    ema, raw = moved(model), model.embed.weight.detach().clone()
    file = save_average(ema, model, tmp_path / name)
    assert file == (tmp_path / name if name else tmp_path / "model.safetensors")
    stored = load_file(file)
    assert stored.keys() == model.state_dict().keys()
    assert torch.equal(stored["embed.weight"], ema.average()["embed.weight"])
    assert torch.equal(stored["head.weight"], ema.average()["embed.weight"])
    assert torch.equal(model.embed.weight, raw)
    fresh = Tied()
    fresh.load_state_dict(stored)
    assert torch.equal(fresh.head.weight, ema.average()["embed.weight"])
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_half_precision_models_get_half_precision_files(tmp_path):
    model = nn.Linear(4, 4).bfloat16()
    ema = moved(model)
    stored = load_file(save_average(ema, model, tmp_path))
    assert torch.equal(stored["weight"], ema.average()["weight"].bfloat16())


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_load_the_average(tmp_path, tied):
    pytest.importorskip("transformers")
    from tests.integrations.hf_models import llama
    from transformers import AutoModelForCausalLM

    model = llama(tied=tied)
    ema = moved(model)
    file = save_average(ema, model, tmp_path / "out")
    assert file.name == "model.safetensors"
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= load_file(file).keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    own = dict(loaded.named_parameters(remove_duplicate=False))
    for name, tensor in ema.average().items():
        assert torch.equal(own[name], tensor)
    assert (own["lm_head.weight"] is own["model.embed_tokens.weight"]) == tied
    again = save_average(ema, model, tmp_path / "out")
    assert again == file
    with pytest.raises(InputError, match="give a folder"):
        save_average(ema, model, tmp_path / "one.safetensors")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own, with this transformers
def test_an_adapter_is_saved_as_an_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    from tests.integrations.hf_models import llama

    base = llama(tied=False)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    ema = moved(model)
    file = save_average(ema, model, tmp_path / "adapter")
    assert file.name == "adapter_model.safetensors"
    loaded = peft.PeftModel.from_pretrained(llama(tied=False), tmp_path / "adapter")
    own = dict(loaded.named_parameters())
    lora = {name: tensor for name, tensor in ema.average().items() if "lora_" in name}
    assert lora
    for name, tensor in lora.items():
        assert torch.equal(own[name], tensor)


def test_diffusers_folders_load_the_average(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    if not diffusers.utils.is_torch_available():
        pytest.skip("diffusers does not find torch")
    model = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
                                  block_out_channels=(8, 8), norm_num_groups=4,
                                  down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    ema = moved(model)
    assert save_average(ema, model, tmp_path / "unet").name == "diffusion_pytorch_model.safetensors"
    own = dict(diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").named_parameters())
    for name, tensor in ema.average().items():
        assert torch.equal(own[name], tensor)


def test_timm_loads_the_average(tmp_path):
    timm = peer("timm")
    model = timm.create_model("resnet10t", num_classes=3)
    ema = moved(model)
    file = save_average(ema, model, tmp_path)
    own = dict(timm.create_model("resnet10t", num_classes=3, checkpoint_path=str(file)).named_parameters())
    for name, tensor in ema.average().items():
        assert torch.equal(own[name], tensor)


def test_states_come_back_and_strangers_are_refused(tmp_path):
    state = {"a": {"b": torch.ones(2), 3: (1, None)}, "c": [float("inf"), "x"]}
    state["c"] = ["x"]
    save_state(tmp_path, state)
    found = load_state(tmp_path)
    assert torch.equal(found["a"]["b"], torch.ones(2))
    assert found["a"][3] == (1, None)
    with pytest.raises(InputError, match="cannot read"):
        load_state(tmp_path / "nowhere")
    (tmp_path / "isobatch.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read"):
        load_state(tmp_path)
    (tmp_path / "isobatch.safetensors").unlink()
    save_average(moved(nn.Linear(1, 1)), nn.Linear(1, 1), tmp_path / "isobatch.safetensors")
    with pytest.raises(InputError, match="no state"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    "tree", ["{", "[1]", "[" * 100_000, '{"a": {"$tensor": [1]}}', '{"a": {"$dict": [[1]]}}', '{"a": {"$float": []}}']
)
def test_a_state_that_is_none_is_refused_in_words(tmp_path, tree):
    save_file({"a": torch.ones(1)}, tmp_path / "isobatch.safetensors", metadata={"isobatch": tree})
    with pytest.raises(InputError, match=r"not a readable JSON file|holds a list|not of this format"):
        load_state(tmp_path)


class OfALibrary(nn.Linear):
    """A model that is saved by its library's own form."""

    def save_pretrained(self, folder, **_):
        save_file(self.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("kind", [nn.Linear, OfALibrary])
@pytest.mark.parametrize("content", ["weights of a trainer", "no safetensors"])
def test_only_averages_are_replaced(tmp_path, kind, content):
    model = kind(2, 1)
    ema, file = moved(model), tmp_path / "model.safetensors"
    for _ in range(2):  # the second time over its own
        assert save_average(ema, model, tmp_path) == file
    assert torch.equal(load_file(file)["weight"], ema.average()["weight"])
    file.unlink()
    if content == "no safetensors":
        file.write_bytes(b"{}")
    else:
        save_file(model.state_dict(), file, metadata={"format": "pt"})
    before = file.read_bytes()
    with pytest.raises(InputError, match="holds other weights than an average; give another folder"):
        save_average(ema, model, tmp_path)
    assert file.read_bytes() == before
    assert not [left for left in tmp_path.iterdir() if left.name.startswith(".")]
