"""Where configuration is found, how drop-ins merge, and what comes out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tardisd.config.load import find_config, load_config, plugin_dirs
from tardisd.errors import ConfigError
from tardisd.market.time import DAY, HOUR, SECOND, parse_time

PROBE = Path(__file__).with_name("config") / "probe.py"
HEAD = '[plugins]\ndirs = ["plugins.d"]\n[storages.main]\nplugin = "memory"\n'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plugins.d").mkdir(mode=0o755)
    shutil.copyfile(PROBE, "plugins.d/probe.py")
    Path("plugins.d/probe.py").chmod(0o644)
    return tmp_path


def load(text="", environ=(), **drop_ins):
    Path("config.toml").write_text(HEAD + text)
    for name, drop_in in drop_ins.items():
        Path("conf.d").mkdir(exist_ok=True)
        Path(f"conf.d/{name}.toml").write_text(drop_in)
    return load_config(None, {"HOME": os.getcwd(), **dict(environ)})


def problems(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return [str(problem) for problem in caught.value.problems]


def test_a_small_configuration_is_complete(here):
    config = load()
    assert config.default_storage == "main"
    assert config.daemon.data_dir == here / ".local/share/tardisd"
    assert config.daemon.shutdown_secs == 10
    assert config.instances["storage"]["main"].cls.name == "memory"
    assert config.instances["sink"] == {}


def test_the_search_order(here, monkeypatch):
    environ = {"XDG_CONFIG_HOME": str(here / "xdg")}
    xdg = here / "xdg" / "tardisd" / "config.toml"
    xdg.parent.mkdir(parents=True)
    xdg.write_text("")
    assert find_config(None, environ) == xdg
    Path("config.toml").write_text("")
    assert find_config(None, environ) == Path("config.toml")
    environ["TARDISD_CONFIG"] = "~/named.toml"
    environ["HOME"] = "/home/someone"
    assert find_config(None, environ) == Path("/home/someone/named.toml")
    assert find_config(Path("given.toml"), environ) == Path("given.toml")


def test_no_configuration_names_the_places(here):
    if Path("/etc/tardisd/config.toml").exists():
        pytest.skip("this machine has a system-wide configuration")
    with pytest.raises(
        ConfigError, match=r"no configuration in config.toml, .*tardisd config exam"
    ):
        load_config(None, {"HOME": str(here)})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "no such file; begin with"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"#" * (4 * 1024 * 1024 + 1)), "larger than 4194304 bytes"),
        (lambda path: path.write_text("a = " + "[" * 100_000), "nested too deeply"),
        (lambda path: path.write_text('a = """\nb = 1\n\n'), ":2: config: not TOML: unterminated"),
    ],
)
def test_a_file_that_cannot_be_read(make, text):
    make(Path("bad.toml"))
    with pytest.raises(ConfigError) as caught:
        load_config(Path("bad.toml"), {})
    (problem,) = caught.value.problems
    assert str(problem).startswith("bad.toml:")
    assert text in str(problem)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission():
    Path("config.toml").touch(mode=0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config(None, {})


def test_a_byte_order_mark_is_no_problem():
    Path("config.toml").write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert load_config(None, {}).default_storage == "main"


def test_drop_ins_add_tables_and_keys():
    config = load(
        '[sinks.ws]\nplugin = "probe"\n',
        b_more='[sinks.two]\nplugin = "probe"\n[sinks.ws]\nmax_clients = 3\n',
        a_first='[daemon]\nlog_level = "debug"\n[sessions]\n',
    )
    assert config.instances["sink"]["ws"].options.max_clients == 3
    assert set(config.instances["sink"]) == {"ws", "two"}
    assert config.daemon.log_level == "debug"
    assert [file.name for file in config.files] == ["config.toml", "a_first.toml", "b_more.toml"]


def test_the_same_key_twice_names_both_places():
    found = problems(
        '[sinks.ws]\nplugin = "probe"\ntoken = { file = "x" }\n',
        a='daemon.log_level = "debug"\n[sinks.ws]\ntoken = { env = "X" }\n',
        b='[daemon]\nlog_level = "info"\n\n[[sinks.ws]]\n',
    )
    assert (
        "conf.d/a.toml:3: sinks.ws.token: already set in config.toml:7; keep one of them" in found
    )
    assert (
        "conf.d/b.toml:2: daemon.log_level: already set in conf.d/a.toml:1; keep one of them"
        in found
    )
    assert "conf.d/b.toml:4: sinks.ws: already set in config.toml:5; keep one of them" in found


def test_problems_of_drop_ins_name_their_file_and_come_in_order():
    found = problems(
        "[daemon]\nx = 1\n",
        b='[sinks.ws]\nplugin = "probe"\nx = 1\n',
        a='\n[sessions.s]\nseries = ["nope"]\nstart = 0\nend = 1\n',
    )
    assert [line.split(": ")[0] for line in found] == [
        "config.toml:6",
        "conf.d/a.toml:3",
        "conf.d/a.toml:4",
        "conf.d/a.toml:5",
        "conf.d/b.toml:3",
    ]


def test_every_broken_file_is_told_of():
    found = problems(a="x = \n", b="y = \n", c="[daemon]\n")
    assert [line.split(": ")[0] for line in found] == ["conf.d/a.toml:1", "conf.d/b.toml:1"]


def test_paths_expand_the_home_directory(here):
    config = load(
        '[daemon]\ndata_dir = "~/data"\ncontrol_socket = "run/c.sock"\n'
        '[sinks.ws]\nplugin = "probe"\nfolder = "~/out"\n'
    )
    assert config.daemon.data_dir == here / "data"
    assert config.daemon.control_socket == here / "run/c.sock"
    assert config.instances["sink"]["ws"].options.folder == here / "out"


def test_the_default_places_follow_the_environment(here):
    environ = {"STATE_DIRECTORY": "/var/lib/tardisd:/x", "XDG_RUNTIME_DIR": "/run/user/7"}
    daemon = load(environ=environ).daemon
    assert daemon.data_dir == Path("/var/lib/tardisd")
    assert daemon.control_socket == Path("/run/user/7/tardisd/control.sock")
    assert load(environ={"XDG_DATA_HOME": "/data"}).daemon.data_dir == Path("/data/tardisd")


def test_several_storages_need_a_choice():
    more = '[storages.more]\nplugin = "memory"\n'
    assert "there are several storages" in problems(more)[0]
    assert load('[daemon]\nstorage = "more"\n' + more).default_storage == "more"


def test_presets_and_rules_become_values():
    config = load(
        """
[exchanges.mine]
plugin = "venue"
[sinks.ws]
plugin = "probe"
[sessions.demo]
series = ["venue:BTC/USDT@candle_1m", "okx:ETH-USDT-SWAP@trade"]
start = 2024-03-01T00:00:00+01:00
end = "-1d"
speed = "max"
sinks = ["ws"]
[backfills.both]
exchange = "mine"
symbols = ["BTC/USDT", "ETH/USDT:USDT"]
data_types = ["trade", "candle_1h"]
start = 2024-03-01
at = 02:30:00
jitter = "1.5h"
"""
    )
    now = parse_time("2024-05-01T00:00:00Z")
    request = config.sessions["demo"].request(now)
    assert request.start == parse_time("2024-02-29T23:00:00Z")
    assert request.end == now - DAY
    assert request.speed == "max"
    assert request.storage == "main"
    assert [str(series) for series in request.series] == [
        "venue:BTC/USDT@candle_1m",
        "okx:ETH/USDT:USDT@trade",
    ]
    with pytest.raises(ValueError, match="'demo' ends before it starts"):
        config.sessions["demo"].request(parse_time("2024-03-01T00:00:00Z"))
    rule = config.backfills["both"]
    assert [str(series) for series in rule.series] == [
        "venue:BTC/USDT@trade",
        "venue:BTC/USDT@candle_1h",
        "venue:ETH/USDT:USDT@trade",
        "venue:ETH/USDT:USDT@candle_1h",
    ]
    assert (rule.every, rule.at, rule.jitter) == (None, 9000 * SECOND, 3 * HOUR // 2)
    assert rule.start.at(now) == parse_time("2024-03-01T00:00:00Z")
    assert rule.end is None


def test_what_is_shown_hides_secrets_and_has_defaults():
    shown = load(
        '[sinks.ws]\nplugin = "probe"\ntoken = { env = "T" }\nkeys = ["hush"]\n'
        '[sessions.demo]\nseries = ["venue:A/B@trade"]\nstart = 2024-03-01\nend = "now"\n',
        environ={"T": "sesame"},
    ).shown()
    sink = shown["sinks"]["ws"]
    assert sink["plugin"] == "probe"
    assert sink["token"] == "*** (environment variable T)"
    assert list(sink["keys"]) == ["***"]
    assert sink["max_clients"] == 10
    assert shown["daemon"]["kept_secs"] == 600
    assert shown["sessions"]["demo"]["start"] == "2024-03-01"
    assert "sesame" not in str(shown)
    assert "hush" not in str(shown)


def test_plugin_dirs_come_from_a_configuration_that_is_wrong_otherwise():
    Path("config.toml").write_text('[nonsense]\n[plugins]\ndirs = ["~/a", 7, "b"]\nx = 1\n')
    assert plugin_dirs(None, {"HOME": "/h"}) == (Path("/h/a"), Path("b"))
    with pytest.raises(ConfigError):
        plugin_dirs(Path("missing.toml"), {})
