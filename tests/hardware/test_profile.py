import json
from dataclasses import replace
from pathlib import Path

import pytest

from dali.errors import DaliError, UsageError
from dali.hardware.cost import disk_costs
from dali.hardware.profile import DISK, PLAIN, SCHEMA, STEP, UNITS, Figure, Profile, Table, known, load
from measured import measured

SHIPPED = ["egpu-x4", "laptop-8gb", "paper", "rtx3060-desktop", "rtx4090-desktop"]
TABLE = Table("cpu", "w4", 64, 32, 3, ((1, 1e-5), (4, 2e-5)), "measured", "probe of 3 May")


def test_the_shipped_profiles_are_known():
    assert known() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_figure_is_published_and_sourced(name):
    profile = load(name)
    assert profile.name == name
    assert profile.label == "roofline"
    assert UNITS.keys() - profile.figures.keys() <= {"link_contended", "check_bandwidth", *PLAIN, *STEP}
    assert profile.has_disk
    for figure in profile.figures.values():
        assert figure.label == "roofline"
        assert len(figure.source) > 20
        assert (figure.efficiency == 1) == (not figure.efficiency_source)


def test_the_papers_machine_has_the_papers_link_and_gpu():
    paper = load("paper")
    assert paper.figures["link_bandwidth"].value == 31.5e9  # PCIe 4.0 x16
    assert paper["gpu_memory"] == 24 * 2**30
    assert paper["memory_bandwidth"] == pytest.approx(8 * 3200e6 * 8 * 0.8)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="no hardware profile 'rtx5090'") as caught:
        load("rtx5090")
    assert all(name in caught.value.fix for name in SHIPPED)


def test_what_no_path_can_be_is_no_profile():
    with pytest.raises(UsageError, match="no hardware profile"):
        load("a" * 300)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that is there and cannot be read")
def test_one_that_cannot_be_read_is_said():
    with pytest.raises(DaliError, match=r"Cannot read /proc/self/mem"):
        load("/proc/self/mem")


def test_a_profile_comes_back_from_its_json(tmp_path):
    profile = replace(load("paper"), name="mine", tables=(TABLE,))
    path = tmp_path / "mine.json"
    path.write_text(profile.to_json())
    assert load(path) == load(str(path)) == profile


def test_a_profile_is_measured_only_when_all_of_it_is():
    paper = load("paper")
    measured = {name: replace(figure, label="measured") for name, figure in paper.figures.items()}
    assert replace(paper, figures=measured, tables=(TABLE,)).label == "measured"
    assert replace(paper, figures=measured, tables=(replace(TABLE, label="roofline"),)).label == "roofline"
    assert replace(paper, figures={**measured, "sync": paper.figures["sync"]}).label == "roofline"


def test_another_schema_is_refused_by_its_number():
    data = json.loads(load("paper").to_json()) | {"schema": SCHEMA + 1}
    with pytest.raises(DaliError, match=f"schema {SCHEMA + 1}; this version reads schema {SCHEMA}") as caught:
        Profile.from_json(json.dumps(data), "old.json")
    assert "paper" in caught.value.fix


def edited(change):
    data = json.loads(replace(load("paper"), tables=(TABLE,)).to_json())
    change(data)
    return json.dumps(data)


BROKEN = {
    "not a JSON object": lambda data: data.clear(),
    "sync.* is missing": lambda data: data["figures"].pop("sync"),
    "in 'GB/s', not in 'B/s'": lambda data: data["figures"]["link_bandwidth"].update(unit="GB/s"),
    "has the figure 'disk_bandwidth' and not 'disk_latency'": lambda data: data["figures"].pop(
        "disk_latency"
    ),
    "disk_queue_depth is 2.5, not a whole number from 1": lambda data: data["figures"][
        "disk_queue_depth"
    ].update(value=2.5),
    "warp_speed.* is unknown": lambda data: data["figures"].update(warp_speed=data["figures"]["sync"]),
    "not a positive number": lambda data: data["figures"]["launch"].update(value=-1.0),
    "cpu_rate is nan": lambda data: data["figures"]["cpu_rate"].update(value=float("nan")),
    "'fast' x 1.0": lambda data: data["figures"]["sync"].update(value="fast"),
    "x 1.5": lambda data: data["figures"]["link_bandwidth"].update(efficiency=1.5),
    "sync needs a source": lambda data: data["figures"]["sync"].update(source=""),
    "label out of roofline, measured": lambda data: data["figures"]["sync"].update(label="guess"),
    "efficiency of cpu_rate has no source": lambda data: data["figures"]["cpu_rate"].pop("efficiency_source"),
    "malformed: .*colour": lambda data: data["figures"]["sync"].update(colour="red"),
    "missing or malformed: 'name'": lambda data: data.pop("name"),
    "missing or malformed": lambda data: data.update(figures=[1, 2]),
    "table for w4 needs a device": lambda data: data["tables"][0].update(device="tpu"),
    "token counts that rise from 1": lambda data: data["tables"][0].update(points=[[2, 1e-5]]),
    "counts that rise": lambda data: data["tables"][0].update(points=[[1, 1e-5], [1, 2e-5]]),
    "a time that is not a positive": lambda data: data["tables"][0].update(points=[[1, 0.0]]),
    "table for w4 needs a source": lambda data: data["tables"][0].update(source=""),
    "memory_bandwidth is 1000.* not a positive number": lambda data: data["figures"][
        "memory_bandwidth"
    ].update(value=10**400),
    "link_latency is 1e.300 x": lambda data: data["figures"]["link_latency"].update(value=1e300),
    "launch is True": lambda data: data["figures"]["launch"].update(value=True),
    "depth is 1000000.*, not a whole number from 1 to 1024": lambda data: data["figures"][
        "disk_queue_depth"
    ].update(value=1e6, efficiency=1.0),
    "sync has a spread of 'wide'": lambda data: data["figures"]["sync"].update(spread="wide"),
    "sync needs a source and": lambda data: data["figures"]["sync"].update(source=5),
    "malformed: cannot convert float infinity": lambda data: data["tables"][0].update(
        points=[[1, 1e-5], [float("inf"), 1e-5]]
    ),
    "malformed: int too large": lambda data: data["tables"][0].update(points=[[1, 10**400]]),
    "table for w4 has a spread of nan": lambda data: data["tables"][0].update(spread=float("nan")),
    "in -3 bytes": lambda data: data["tables"][0].update(bytes=-3),
    "of no format": lambda data: data["tables"][0].update(format=["w4"]),
    "the curve 'disk'": lambda data: data.update(
        curves=[
            {"name": "disk", "x": "reads", "unit": "B/s", "points": [[float("nan"), 1]], "source": "a test"}
        ]
    ),
    "its error is -5": lambda data: data.update(error=-5),
    "its error is nan": lambda data: data.update(error=float("nan")),
}


@pytest.mark.parametrize(("problem", "change"), BROKEN.items(), ids=BROKEN)
def test_a_broken_profile_says_where_it_is_broken(problem, change):
    with pytest.raises(DaliError, match=problem) as caught:
        Profile.from_json(edited(change), "odd.json")
    assert "odd.json" in caught.value.problem


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe\x00", b"[" * 10**5])
def test_a_file_that_is_no_profile_is_refused(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(DaliError, match="not a JSON object with a schema"):
        load(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    path.write_text(load("paper").to_json())

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(DaliError, match=r"Cannot read .*mine.json \(Permission denied\)"):
        load(path)


def test_what_no_file_can_be_called_is_no_profile():
    with pytest.raises(UsageError, match="There is no hardware profile 'aaaa"):
        load("a" * 5000)


def test_a_figures_efficiency_multiplies_its_value():
    assert Figure(200.0, "B/s", "roofline", "a sheet", 0.8, "a test").effective == pytest.approx(160.0)


def test_a_profile_from_before_there_was_a_disk_is_read():
    data = json.loads(load("paper").to_json())
    for name in DISK:
        del data["figures"][name]
    old = Profile.from_json(json.dumps(data), "old.json")
    assert not old.has_disk
    with pytest.raises(UsageError, match="paper does not say how fast its disk is") as caught:
        disk_costs(old)
    assert "disk_bandwidth, disk_latency, disk_queue_depth" in caught.value.fix
    assert "laptop-8gb" in caught.value.fix


def test_a_disks_read_takes_its_latency_and_its_bytes():
    disk = disk_costs(load("laptop-8gb"))
    assert disk.depth == 4
    assert disk.read(10**9) == pytest.approx(5.3e-5 + 1 / (7 * 0.86))


@pytest.mark.parametrize(
    ("plain", "spread", "plainly"), [(3.2e9, 0.01, False), (3.4e9, 0.01, True), (3.4e9, 0.1, False)]
)
def test_plain_reading_is_for_where_it_was_measured_to_be_clearly_faster(plain, spread, plainly):
    """Than 3 GB/s: by more than a tenth, and by more than the readings of both differ."""
    profile = measured(plain_bandwidth=plain, plain_queue_depth=4.0)
    figures = {name: replace(figure, spread=spread) for name, figure in profile.figures.items()}
    profile = replace(profile, figures=figures)
    assert profile.plain_share == pytest.approx(plain / 3e9)
    assert profile.reads_plainly == plainly
    costs, other = disk_costs(profile), profile.read_otherwise()
    assert (costs.bandwidth, costs.depth) == ((plain, 4) if plainly else (3e9, 2))
    assert disk_costs(other).bandwidth == (3e9 if plainly else plain)
    assert other.plain_share is None


def test_without_a_measurement_nothing_is_said_of_plain_reading():
    assert measured().plain_share is None
    assert not measured().reads_plainly
    assert measured().read_otherwise() is None
