"""Presets and YAML files of the original: every key means what it means there."""

import dataclasses
import typing

import pytest

from slam.config import SlamConfig
from slam.io.frames import SourceError
from slam.presets import FIELDS, ONLY_ONE, PRESETS, WITHOUT_EFFECT, Preset, read_preset

# Keys, order and notation of the original's config/base.yaml, whose values are facts.
BASE = """\
use_calib: False
single_thread: False
dataset:
  subsample: 1
  img_downsample: 1
  center_principle_point: True

matching:
  max_iter: 10
  lambda_init: 1e-8
  convergence_thresh: 1e-6
  dist_thresh: 1e-1 # metres
  radius: 3
  dilation_max: 5

tracking:
  min_match_frac: 0.05
  max_iters: 50
  C_conf: 0.0
  Q_conf: 1.5
  rel_error: 1e-3
  delta_norm: 1e-3
  huber: 1.345
  match_frac_thresh: 0.333
  sigma_ray: 0.003
  sigma_dist: 1e+1
  sigma_pixel: 1.0
  sigma_depth: 1e+1
  sigma_point: 0.05
  pixel_border: -10
  depth_eps: 1e-6
  filtering_mode: weighted_pointmap # one of six
  filtering_score: median

local_opt:
  pin: 1
  window_size: 1e+6
  C_conf: 0.0
  Q_conf: 1.5
  min_match_frac: 0.1
  pixel_border: -10
  depth_eps: 1e-6
  max_iters: 10
  sigma_ray: 0.003
  sigma_dist: 1e+1
  sigma_pixel: 1.0
  sigma_depth: 1e+1
  sigma_point: 0.05
  delta_norm: 1e-8
  use_cuda: True

retrieval:
  k: 3
  min_thresh: 5e-3

reloc:
  min_match_frac: 0.3
  strict: True
"""
HEIRS = {
    "calib": "use_calib: True\ndataset:\n  subsample: 2\n",
    "eval_calib": "use_calib: True\nsingle_thread: True\ndataset:\n  subsample: 2\n",
    "eval_no_calib": "use_calib: False\nsingle_thread: True\ndataset:\n  subsample: 2",
    "eth3d": "dataset:\n  subsample: 1\n  center_principle_point: False\n\nreloc:\n  strict: False",
}
"""What the original's other files change; all inherit base.yaml but eth3d, which eval_calib."""


@pytest.fixture
def original(tmp_path):
    """The original's folder of configurations."""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE)
    for name, text in HEIRS.items():
        parent = "eval_calib" if name == "eth3d" else "base"
        (folder / f"{name}.yaml").write_text(f'inherit: "config/{parent}.yaml"\n\n{text}')
    return folder


def leaves(record, prefix=""):
    """Every field of nested records that is no record, by its dotted name."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


@pytest.mark.parametrize("name", ["base", *HEIRS])
def test_presets_are_the_originals_files(original, name):
    read = dict(leaves(read_preset(original / f"{name}.yaml")))
    assert read == dict(leaves(read_preset(name)))
    # A number of another type would be another program under jit.
    default = dict(leaves(Preset()))
    assert {key: type(value) for key, value in read.items()} == {
        key: type(value) for key, value in default.items()
    }


def test_presets_have_the_originals_values():
    assert list(PRESETS) == ["base", *HEIRS]
    assert PRESETS["base"].config == SlamConfig()
    told = {name: (p.calibrated, p.stride, p.center_principal_point) for name, p in PRESETS.items()}
    assert told == {
        "base": (False, 1, True),
        "calib": (True, 2, True),
        "eval_calib": (True, 2, True),
        "eval_no_calib": (False, 2, True),
        "eth3d": (True, 1, False),
    }
    strict = {name: preset.config.relocalization.strict for name, preset in PRESETS.items()}
    assert [name for name, value in strict.items() if not value] == ["eth3d"]


def other(value, kind):
    """A value of that kind that is not the default."""
    choices = typing.get_args(kind)
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 0.5 * value + 0.25


def kind_of(place):
    cls = Preset
    for name in place.split("."):
        cls = {field.name: field.type for field in dataclasses.fields(cls)}[name]
    return cls


@pytest.mark.parametrize("key", FIELDS)
def test_every_key_sets_its_fields_and_no_others(tmp_path, key):
    default = dict(leaves(Preset()))
    value = other(default[FIELDS[key][0]], kind_of(FIELDS[key][0]))
    (tmp_path / "one.yaml").write_text("".join(_nested(key, value)))
    read = dict(leaves(read_preset(tmp_path / "one.yaml")))
    assert {k: v for k, v in read.items() if v != default[k]} == dict.fromkeys(FIELDS[key], value)


def _nested(key, value):
    for depth, part in enumerate(key.split(".")):
        yield f"{'  ' * depth}{part}:{'' if depth < key.count('.') else f' {value}'}\n"


def test_every_key_of_the_original_is_known(original):
    keys, section = set(), ""
    for line in BASE.splitlines():
        name = line.partition(":")[0]
        if line and not line.startswith(" "):
            section = "" if line.partition(":")[2].strip() else f"{name}."
        if line.partition(":")[2].strip():
            keys.add(section + name.strip())
    assert keys == {*FIELDS, *WITHOUT_EFFECT, *ONLY_ONE}
    places = [place for targets in FIELDS.values() for place in targets]
    assert len(places) == len(set(places))


def test_keys_without_effect_have_none(tmp_path):
    text = "single_thread: True\nlocal_opt:\n  window_size: 7\n  use_cuda: False\n  pin: 1\n"
    (tmp_path / "a.yaml").write_text(text + "tracking:\n  sigma_point: 9\nretrieval:\n")
    assert read_preset(tmp_path / "a.yaml") == Preset()


def test_numbers_in_every_notation(tmp_path):
    # YAML 1.1 takes 1e-3 for a word, and 2.e3 as well.
    lines = [
        "rel_error: 1e-4",
        "delta_norm: 2.E-4",
        "sigma_dist: 2.e1",
        "huber: 2",
        "max_iters: 2e1",
    ]
    (tmp_path / "a.yaml").write_text("tracking:\n" + "".join(f"  {line}\n" for line in lines))
    rays = read_preset(tmp_path / "a.yaml").config.tracking.rays
    assert (rays.rel_error, rays.delta_norm, rays.sigma_dist) == (1e-4, 2e-4, 20.0)
    assert (rays.huber, rays.max_iterations) == (2.0, 20)
    assert isinstance(rays.huber, float) and isinstance(rays.max_iterations, int)


def test_parents_are_found_beside_the_file_or_by_name(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    heir = tmp_path / "mine" / "heir.yaml"
    heir.write_text("inherit: config/eth3d.yaml\ndataset: {subsample: 7}\n")
    monkeypatch.chdir(tmp_path)

    def inherited():
        return read_preset(heir).config.relocalization.min_match_fraction

    # No such file: the preset of that name.
    assert read_preset(heir) == dataclasses.replace(PRESETS["eth3d"], stride=7)
    # Under the working folder, where the original looks; beside the file; under the file's folder:
    # each is preferred to those before.
    places = ("config/eth3d.yaml", "mine/eth3d.yaml", "mine/config/eth3d.yaml")
    for place, value in zip(places, (0.5, 0.6, 0.7), strict=True):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"reloc: {{min_match_frac: {value}}}")
        assert inherited() == value
    assert read_preset(str(heir)).stride == 7


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", r"mine\.yaml:1: unknown key 'a'; known keys are in dataset, local_opt, matching"),
        (
            "\ntracking:\n  sigma_rays: 1",
            r"mine\.yaml:3: unknown key 'tracking\.sigma_rays'; did you mean tracking\.sigma_ray",
        ),
        ("sigma_ray: 1", r"unknown key 'sigma_ray'; did you mean .*tracking\.sigma_ray"),
        ("reloc: 1", r"unknown key 'reloc'; did you mean reloc\.min_match_frac or reloc\.strict"),
        ("tracking:\n  huber: {a: 1}", r":2: unknown key 'tracking\.huber\.a'; did you mean"),
        ("tracking:\n  huber: big", r":2: tracking\.huber: expected a number, found 'big'"),
        ("tracking:\n  huber: .nan", r":2: tracking\.huber: expected a number, found nan"),
        ("tracking:\n  huber: [1]", r":2: tracking\.huber: expected a number, found \[1\]"),
        ("tracking:\n  max_iters: 2.5", r":2: tracking\.max_iters: expected a whole number, found"),
        ("reloc:\n  strict: 1", r":2: reloc\.strict: expected True or False, found 1"),
        ("retrieval:\n  k: yes", r":2: retrieval\.k: expected a whole number, found True"),
        ("retrieval:\n  k: 0", r":2: retrieval\.k: num_candidates=0 must be at least 1"),
        ("dataset:\n  subsample: 0", r":2: dataset\.subsample: stride=0 must be at least 1"),
        ("tracking:\n  min_match_frac: 2", r":2: tracking\.min_match_frac: .* between 0 and 1"),
        ("tracking:\n  filtering_mode: all", r":2: .*: expected one of weighted_pointmap, .*'all'"),
        ("local_opt:\n  pin: 2", r":2: local_opt\.pin: only 1 is supported, not 2; the first"),
        ("dataset:\n  img_downsample: 2", r":2: .*: only 1 is supported, not 2; .* --config\.size"),
        ("reloc:\n  strict: True\nreloc:\n", r":3: key 'reloc' is there already, on line 1"),
        ("tracking: {huber: 1", r"mine\.yaml:1: not YAML: expected ',' or '}'"),
        ("- a\n- b", r"mine\.yaml:1: expected lines 'key: value'"),
        ("a: !!python/object:os.system {b: 1}", r"mine\.yaml:1: unknown key 'a\.b'"),
        ("use_calib: !!python/name:os.system", r"mine\.yaml:1: not YAML: could not determine"),
        ("use_calib: 2020-13-45", r"mine\.yaml: not YAML: month must be in 1"),
        ("a: &a\n  b: *a", r"mine\.yaml:1: nested too deep"),
        ("a: \x00", r"mine\.yaml: not YAML: .*special characters"),
        (
            "inherit: no.yaml",
            r"mine\.yaml:1: no file no\.yaml to inherit from; put no\.yaml beside",
        ),
        (
            "\ninherit: [a]",
            r"mine\.yaml:2: inherit: expected the path of a YAML file, found \['a'\]",
        ),
        ("inherit: mine.yaml", r"mine\.yaml:1: inherits from .*mine\.yaml, which inherits from it"),
    ],
)
def test_wrong_files_are_refused_by_line(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        read_preset(write(tmp_path, text))


def test_files_that_inherit_in_a_circle_are_refused(tmp_path):
    (tmp_path / "other.yaml").write_text("\ninherit: mine.yaml")
    with pytest.raises(SourceError, match=r"other\.yaml:2: inherits from .*mine\.yaml, which"):
        read_preset(write(tmp_path, "inherit: other.yaml"))


def test_what_is_no_preset_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"eth: neither a preset nor a file; presets are base, c"):
        read_preset("eth")
    with pytest.raises(SourceError, match="is a folder; pass one of the YAML files in it"):
        read_preset(tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(SourceError, match=r"image\.yaml: not a text file"):
        read_preset(tmp_path / "image.yaml")


def test_an_empty_file_is_base(tmp_path):
    assert read_preset(write(tmp_path, "# nothing\n")) == PRESETS["base"]
