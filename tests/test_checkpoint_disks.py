"""Disks without locks or without durable names, files of others, folders that not every rank sees."""

import errno
import os
import stat

import pytest
import torch

from isobatch.checkpoint import Checkpoints, Preemption, files, load, process, tree
from isobatch.checkpoint.manifest import names
from isobatch.checkpoint.shards import Piece, Sharded
from isobatch.errors import InputError, SaveError

STATE = {"model": {"w": torch.arange(4.0)}}


def saved(folder):
    with Checkpoints(folder) as store:
        store.save(STATE, seen=3)
        return store.latest()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])  # Lustre without -o flock, NFS, FUSE
def test_a_disk_without_locks_is_named_and_saves(tmp_path, monkeypatch, code):
    def flock(handle, what):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=f"this disk has no locks .*{errno.errorcode[code]}") as said:
        assert saved(tmp_path).seen == 3
    assert len(said) == 1


@pytest.mark.parametrize(("code", "fine"), [(errno.EINVAL, True), (errno.ENOSYS, True), (errno.EOPNOTSUPP, True),
                                            (errno.EIO, False), (errno.ENOSPC, False)])  # fmt: skip
def test_a_disk_that_does_not_sync_folders_saves_and_one_that_fails_to_is_refused(tmp_path, monkeypatch, code, fine):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if fine:
        assert saved(tmp_path).seen == 3
    else:
        with pytest.raises(SaveError, match=errno.errorcode[code]):
            saved(tmp_path)


@pytest.mark.parametrize(("content", "fine"), [
    (b"", True), (b"\0" * 40, True), (b'{"pi', True), (b'{"pid": 7, "host": "a"}', True), (b'{"pid": 7, "ho', True),
    (b"[[package]]\n", False), (b"{}", False), (b" kept by hand", False),
])  # fmt: skip
def test_a_file_called_lock_that_is_not_ours_is_left_as_it_is(tmp_path, content, fine):
    (tmp_path / "lock").write_bytes(content)
    if fine:  # of a run that was killed at any moment, or by a power cut
        assert saved(tmp_path).seen == 3
        return
    with pytest.raises(InputError, match=r"lock holds something of yours.*a folder of its own"):
        saved(tmp_path)
    assert (tmp_path / "lock").read_bytes() == content


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path):
    (tmp_path / "mine").write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(SaveError, match="ELOOP"):
        saved(tmp_path / "run")
    assert (tmp_path / "mine").read_bytes() == b""


def test_a_full_disk_does_not_keep_the_word_in_the_lock_and_shows_in_the_trial_save(tmp_path, monkeypatch):
    def pwrite(handle, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert saved(tmp_path).seen == 3


class SecondRank:
    """What rank 1 of 2 is told."""

    rank, world = 1, 2

    def __init__(self, *told):
        self.told = list(told)

    def share(self, number):
        return self.told.pop(0)

    def together(self, action):
        return action()


@pytest.mark.parametrize(("told", "sees"), [((2, 9), True), ((2, 7), False), ((3, 9), False), ((0, 0), None)])
def test_a_rank_that_does_not_see_the_checkpoint_of_the_others_does_not_begin_anew(tmp_path, told, sees):
    with Checkpoints(tmp_path) as store:
        store.save(STATE, seen=3)
        store.save(STATE, seen=9)
    store = Checkpoints(tmp_path)
    store._ranks = SecondRank(*told)
    if sees is False:
        with pytest.raises(InputError, match=r"rank 0 has this checkpoint and rank 1 does not see it"):
            store.latest()
    else:
        assert (store.latest() is not None) is bool(sees)


@pytest.mark.parametrize("name", ["000002-seen-9\n", "000002-seen-\u0669", "0000002-seen-9", "000002-seen-09"])
def test_only_names_that_a_save_gives_are_checkpoints(tmp_path, name):
    saved(tmp_path)
    (tmp_path / name).mkdir()
    assert [step.seen for step in Checkpoints(tmp_path).list()] == [3]


def test_two_checkpoints_of_one_number_are_not_mixed(tmp_path):
    """Two runs at once on a disk without locks: the one that was verified is the one that is loaded."""
    first = saved(tmp_path)
    (tmp_path / "000001-seen-2").mkdir()
    assert Checkpoints(tmp_path).latest() == first


def test_a_part_whose_file_has_gone_since_is_refused_in_words(tmp_path):
    step = saved(tmp_path)
    path = step.path / names(0)[1]
    part = Sharded("w", (4,), torch.float32, [Piece(path, "model/w", (0,), (4,))], lambda file: None)
    assert torch.equal(part.whole(), STATE["model"]["w"])
    for missing, words in ((Piece(path, "model/v", (0,), (4,)), "not of this format"), (
        Piece(path.with_name("gone"), "model/w", (0,), (4,)), "cannot be read")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            Sharded("w", (4,), torch.float32, [missing], lambda file: None).whole()


def test_two_sharded_tensors_of_one_path_are_refused_where_plain_ones_get_two_names(monkeypatch):
    state = {"a/b": torch.zeros(2), "a": {"b": torch.ones(2)}}
    assert len(tree.split(state)[1]) == 2
    monkeypatch.setattr(tree, "sharded", lambda value: True)
    with pytest.raises(InputError, match="'a/b' is the path of two sharded tensors"):
        tree.split(state)


def test_the_path_that_a_refusal_names_is_a_pattern_of_itself(tmp_path):
    with Checkpoints(tmp_path, allow_nonfinite=["best[0]"]) as store:
        store.save({"best[0]": torch.tensor(torch.inf)}, seen=1)
    assert load(tmp_path / "000001-seen-1").state["best[0]"].isinf()


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch):
    given = []
    monkeypatch.setattr(process.signal, "signal", lambda number, handler: given.append(handler))
    with Preemption():
        pass
    assert len(given) == 2
    assert None not in given
