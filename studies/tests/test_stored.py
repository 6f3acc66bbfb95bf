"""Runs that were finished before are found again: the names under which they are kept do not change."""

import pytest
from studies.tests.stored import NAMES, stored

from isobatch_studies.claims import grids

# study, quick, runs that the grid keeps, name of the first, hash of all names; taken at 014ec81
KEPT = [
    ("adam", False, 630, "shares-65357570638a3dfce800596c.json", "4e258226dcc962da575846d1"),
    ("adam", True, 89, "shares-65357570638a3dfce800596c.json", "7deca8fed64bfd4289debc59"),
    ("adaptive", False, 56, "fd9e1383bedd584426ae84f2.json", "57054915259998ab473632de"),
    ("adaptive", True, 15, "fd9e1383bedd584426ae84f2.json", "f89016a3c4bab75f4cedab93"),
    ("autowu", False, 615, "757255870c1e641debc845a0.json", "8142e52ef7f62a394b93e8c6"),
    ("autowu", True, 85, "757255870c1e641debc845a0.json", "79510730e2ae9b31c51d362e"),
    ("batch-augmentation", False, 230, "0d2abe46c87c62a668ec7a82.json", "ccb5fb9f5584bffaf3ca0cbb"),
    ("batch-augmentation", True, 65, "0d2abe46c87c62a668ec7a82.json", "368526103c423a7671703f05"),
    ("byol", False, 192, "dcae2838d1f50b1c6a812a94.json", "cab6a18fa9a125a483a5d5a9"),
    ("byol", True, 30, "fb94c424c58301d8a7656c08.json", "cea00d14b7186dcd2a3367d3"),
    ("byol-24576", False, 32, "4fbfb18d947fc90d27f4176f.json", "f3ee2210b87ffcf1b8801151"),
    ("byol-24576", True, 10, "edfbfe89e25101a8bab2cbc9.json", "d44732adad7e1aab0ddc1c96"),
    ("concurrent-adversarial", False, 531, "579d728da1f2d732544356d4.json", "69eb6caf1cea0140aadd743e"),
    ("concurrent-adversarial", True, 101, "579d728da1f2d732544356d4.json", "addc2106a64198be7d221b3b"),
    ("decentlam", False, 74, "05f8a659389cc46f4d2869b5.json", "4b74a03ec42b3f630f16fb9c"),
    ("decentlam", True, 13, "21974085eefb3b23108d51e1.json", "983bcf8a4acc48c99d2e11a6"),
    ("dino", False, 128, "4e7cb1e66d475d1541ed6edb.json", "6620328325849bb442608731"),
    ("dino", True, 18, "d248dffbcf42b7624f92c731.json", "f6c3966e4160bd6ed4174258"),
    ("legw", False, 295, "fc1b5f1dc3dc9423ded28efd.json", "b9f50cd799ff582115cd27e3"),
    ("legw", True, 45, "fc1b5f1dc3dc9423ded28efd.json", "dd8152a2053b2b68cd7c6156"),
    ("noise-scale", False, 93, "2aaf6d6e5019af9f5d861ed5.json", "93bd07405a04a5bfe7df4f7b"),
    ("noise-scale", True, 24, "2a1e36a5b06b4149cc6f370e.json", "78dcccf4ff3831829a8a8c9d"),
    ("polyak", False, 288, "011a7370b883ee2b95e1e185.json", "bb84e330ce7a6148661f9356"),
    ("polyak", True, 30, "bdc7edeec87aeb89ce80963a.json", "c2f7a81e82a1fb21eb8d4d6a"),
    ("progressive", False, 168, "6a2be9cbadae27521da55d10.json", "b52c4ce57a08f72050d15d6a"),
    ("progressive", True, 56, "6a2be9cbadae27521da55d10.json", "ce763a10a911c8ee6485c565"),
    ("pseudo-label", False, 136, "7ece38cd2ca21435258602ea.json", "de061f41108b6d6c1e381c20"),
    ("pseudo-label", True, 9, "5ce91ca79e032a8ea9f2de12.json", "cf95e9ea3a242ca0b84f4332"),
]  # fmt: skip
# study, further grid, and the same of it; taken when its criteria were committed
FURTHER = [
    ("adam", "from-one", 153, "shares-e05bf018f139441b08f61d5e.json", "a4138a106a7393a3974c5070"),
    ("adam", "text-4x", 41, "shares-85392093f9b7b554269819c2.json", "1f44666a1d2b0b0b5b974ca4"),
    ("adaptive", "late", 72, "fc3f3593fde2e17007c29908.json", "1404fe895324f770b844325f"),
    ("autowu", "frames", 330, "5643a3ea87ab9114beb9d85c.json", "ce96a7313fcabf83474cc69d"),
    ("batch-augmentation", "long", 75, "bcb8d664a8a7e1d442762048.json", "7be07c75dd09ce8349f4878c"),
    ("concurrent-adversarial", "long", 405, "91aba00acebbbd8b7d58a135.json", "db69d93b1a07d2dc8c4a1d1e"),
    ("dino", "invariant", 112, "b2367aacad087f87dd1f1d6e.json", "30d54f72bc7391e84df2fa18"),
    ("legw", "frames", 195, "ccb878e6fd66305a2c0bb9d8.json", "083b7ad1ea0703ff59727950"),
    ("legw", "long-text", 90, "d488186f5b2ed902041dccd6.json", "2adf96cecba0e491922df3f8"),
    ("noise-scale", "eight-seeds", 78, "2aaf6d6e5019af9f5d861ed5.json", "eb3cb674d08d3af97bd9e49b"),
    ("noise-scale", "a2c", 23, "a47d40bd733c284be5a1fef9.json", "d543a30670958570a0e85d89"),
    ("noise-scale", "wsd", 64, "ed89f0d0c121dbe59f608bf7.json", "861c006173ddf93d3b194721"),
    ("polyak", "small-steps", 160, "99beaa9c21a2e51d33330a3b.json", "8e3377829db934dba9676a0c"),
]


@pytest.mark.parametrize(("study", "quick", "count", "first", "every"), KEPT)
def test_finished_runs_keep_their_names(study, quick, count, first, every):
    assert stored(study, quick=quick) == (count, first, every)


def test_every_grid_of_every_study_is_held():
    assert [(study, quick) for study, quick, *_ in KEPT] == [(s, q) for s in NAMES for q in (False, True)]


@pytest.mark.parametrize(("study", "grid", "count", "first", "every"), FURTHER)
def test_finished_runs_of_further_grids_keep_their_names(study, grid, count, first, every):
    assert stored(study, grid=grid) == (count, first, every)


def test_every_further_grid_is_held():
    listed = {(study, grid) for study in NAMES for grid in grids(study)[1:]}
    assert {(study, grid) for study, grid, *_ in FURTHER} == listed
