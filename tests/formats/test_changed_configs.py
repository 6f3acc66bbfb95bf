"""Python configs that change what they built: applied where that is plain, never believed where it is not."""

import pytest
from tests.formats.answering import loaded

CONFIG = (
    "train_dataloader = dict(batch_size=8)\n"
    "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005))\n"
    "train_cfg = dict(max_epochs=12)\n"
    "param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-4, begin=0, end=12, by_epoch=True)]\n"
    "custom_hooks = [dict(type='Foo')]\n"
)


def numbers(found):
    recipe = found.recipe
    return recipe.batch.size, recipe.optimizer.lr, recipe.ema and recipe.ema.decay


@pytest.mark.parametrize(("change", "want", "written"), [
    ("train_dataloader.update(batch_size=4)", (32, 0.01, None), "update(batch_size=4)\n"),
    ("train_dataloader.update(dict(batch_size=4))", (32, 0.01, None), "update(dict(batch_size=4))\n"),
    ("train_dataloader.update({'batch_size': 4})", (32, 0.01, None), "update({'batch_size': 4})\n"),
    ("train_dataloader['batch_size'] = 4", (32, 0.01, None), "train_dataloader['batch_size'] = 4\n"),
    ("optim_wrapper['optimizer'].update(lr=0.5)", (64, 0.5, None), "update(lr=1.9)"),
    ("custom_hooks.append(dict(type='EMAHook', momentum=0.002))", (64, 0.01, 0.998), "momentum=0.003996))"),
    ("custom_hooks.extend([dict(type='EMAHook', momentum=0.002)])", (64, 0.01, 0.998), "momentum=0.003996)])"),
    ("custom_hooks += [dict(type='EMAHook', momentum=0.002)]", (64, 0.01, 0.998), "momentum=0.003996)]"),
    ("param_scheduler[0]['eta_min'] = 1e-5", (64, 0.01, None), "['eta_min'] = 3.8e-05"),
])  # fmt: skip
def test_a_plain_change_counts_and_is_written_where_it_stands(change, want, written, tmp_path):
    found = loaded(tmp_path, "a.py", CONFIG + change + "\n")
    assert numbers(found) == pytest.approx(want)
    assert written in found.at(devices=16).text()


@pytest.mark.parametrize(("change", "asked"), [
    ("optim_wrapper['optimizer']['lr'] *= 2", "lr"),
    ("if True:\n    optim_wrapper['optimizer']['lr'] = 0.5", "lr"),
    ("if True:\n    optim_wrapper.pop('optimizer')", "lr"),
    ("optim_wrapper.optimizer.pop('lr')", "lr"),
    ("train_dataloader.clear()", "batch_size"),
    ("train_dataloader.update(more)", "batch_size"),
    ("del train_dataloader['batch_size']", "batch_size"),
])  # fmt: skip
def test_what_only_running_tells_is_asked(change, asked, tmp_path):
    with pytest.raises(KeyError, match=asked):  # a question that nobody foresaw
        loaded(tmp_path, "a.py", CONFIG + change + "\n")


@pytest.mark.parametrize("change", ["param_scheduler.insert(0, dict(type='LinearLR'))", "param_scheduler[7] = dict()",
                                    "param_scheduler = make()\nparam_scheduler = param_scheduler + [1]"])  # fmt: skip
def test_a_list_that_only_running_tells_is_named(change, tmp_path):
    found = loaded(tmp_path, "a.py", CONFIG + change + "\n")
    assert [item.key.split(".")[0] for item in found.ledger.unread] == ["param_scheduler"]


def test_what_train_returns_is_no_second_recipe(tmp_path):
    text = (
        "from ultralytics import YOLO\nmodel = YOLO('yolo11n.pt')\n"
        "results = model.train(data='coco8.yaml', epochs=100, imgsz=640, batch=64, optimizer='SGD', lr0=1e-2)\n"
    )
    found = loaded(tmp_path, "a.py", text)
    assert not found.ledger.unread
    assert "batch=64, optimizer='SGD', lr0=1e-2, nbs=128" in found.at(128).text()
