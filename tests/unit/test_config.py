"""The configuration: what is refused is named, with every fault at once, and no secret is ever repeated."""

from __future__ import annotations

import os
import pickle
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from cxrnode.config import Config, Http, Node, Receive, ReceiveTls, SendTls, Syslog, load_config
from cxrnode.config_faults import EXAMPLE
from cxrnode.errors import ConfigError
from tests.support.configuration import WHOLE, document, fault, load, with_tls_files

SECRET = "geheim"
URL = f"postgresql+psycopg://cxr:{SECRET}@db.example:5432/cxrnode"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tls_files(tmp_path_factory.mktemp("configuration"))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("CXRNODE_") and "__" in n]:
        monkeypatch.delenv(name)


# --- the example ----------------------------------------------------------------------------------------------------


def test_the_example_is_the_defaults_but_for_what_is_marked(folder: Path) -> None:
    marked = set(re.findall(r"^\W*(\w+)[^#\n]*# yours", EXAMPLE, re.MULTILINE))
    assert marked == {"allow", "stat", "destination"}
    data = tomllib.loads(EXAMPLE)
    del data["receive"]["allow"], data["analyse"]["stat"], data["destination"]
    assert load(folder, document(data)) == load(folder, "")
    assert load(folder, "").model_dump(exclude={"node": {"data_dir"}}) == Config().model_dump(
        exclude={"node": {"data_dir"}}
    )


def test_the_example_as_it_is(folder: Path) -> None:
    config = load(folder, EXAMPLE)
    assert [(a.ae_title, a.host, a.port) for a in config.receive.allow] == [("PACS", "127.0.0.1", 104)]
    assert [r.attribute or r.calling_ae for r in config.analyse.stat] == ["RequestedProcedurePriority", "ER"]
    assert [(d.name, d.port, d.storage_commitment, d.tls) for d in config.destination] == [("pacs", 14242, True, False)]
    assert (config.receive.tls, config.send.tls) == (None, None)


def test_what_it_leaves_commented_out_is_right_too(folder: Path) -> None:
    config = load(folder, WHOLE)
    assert config.receive.tls
    assert config.send.tls
    assert config.receive.tls.certificate == config.send.tls.certificate == folder / "tls" / "node.pem"
    assert config.audit.syslog
    assert config.audit.syslog.ca == folder / "tls" / "ca.pem"
    for given_, table in (
        (config.receive.tls, ReceiveTls), (config.send.tls, SendTls), (config.audit.syslog, Syslog),
    ):  # fmt: skip
        for key, field in table.model_fields.items():
            if not field.is_required() and field.default is not None:
                assert getattr(given_, key) == field.default


def test_the_example_holds_every_key_there_is() -> None:
    def keys(model: type[BaseModel], at: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            inner = [
                t
                for t in (field.annotation, *get_args(field.annotation))
                if isinstance(t, type) and issubclass(t, BaseModel)
            ]
            yield f"{at}{name}"
            if inner:
                yield from keys(inner[0], f"{at}{name}.")

    def given_keys(value: Any, at: str) -> Iterator[str]:
        for name, inner in value.items():
            yield f"{at}{name}"
            for table in inner if isinstance(inner, list) else [inner]:
                if isinstance(table, dict):
                    yield from given_keys(table, f"{at}{name}.")

    assert set(given_keys(tomllib.loads(WHOLE), "")) == set(keys(Config, ""))


# --- what is refused ------------------------------------------------------------------------------------------------

PEER = 'ae_title = "A", host = "h"'
PACS = '[[destination]]\nname = "pacs"\nae_title = "A"\nhost = "h"\nport = 104\n'
FAULTS = [
    (f'{PACS}commitment_ae_titles = [""]', 'destination[0].commitment_ae_titles[0].ae_title = ""', "1 to 16 printable"),
    (f'{PACS}commitment_ae_titles = ["A", {{ host = "h" }}]', "commitment_ae_titles[1].ae_title", "is missing"),
    (f'{PACS}commitment_ae_titles = [{{ ae_title = "B", host = "h:1" }}]', "commitment_ae_titles[0].host", "host name"),
    (f'{PACS}commitment_ae_titles = [{{ ae_title = "B", at = "h" }}]', "commitment_ae_titles[0].at", "unknown key"),
    (f"{PACS}commitment_ae_titles = 5", "commitment_ae_titles = 5", "should be an array"),
    (f'{PACS}storage_commitment = false\ncommitment_ae_titles = ["B"]', "commitment_ae_titles", "is never asked"),
    ("node = 5", "node = 5: should be a table", 'node = { ae_title = "CXRNODE", '),
    ("[node]\nport = 0", "node.port = 0: should be greater than or equal to 1", "port = 11112"),
    ("[node]\nport = true", "node.port = true: should be a number", "port = 11112"),
    ("[node]\nport = 1979-05-27", "node.port: should be a valid integer", "port = 11112"),
    ('[node]\nae_title = ""', 'node.ae_title = ""', 'ae_title = "CXRNODE"'),
    ('[node]\nae_title = "   "', 'node.ae_title = "   "', "1 to 16 printable ASCII"),
    ('[node]\nae_title = "ABCDEFGHIJKLMNOPQ"', "node.ae_title", "1 to 16 printable ASCII"),
    ('[node]\nae_title = "A\\\\B"', "node.ae_title", "no backslash"),
    ('[node]\nae_title = "RÖNTGEN"', "node.ae_title", "1 to 16 printable ASCII"),
    ('[node]\nae_title = "A\\tB"', "node.ae_title", "1 to 16 printable ASCII"),
    ("[node]\nae_title = 5", "node.ae_title = 5: should be a string", 'ae_title = "CXRNODE"'),
    ('[node]\nbind = "[::1]"', "node.bind", "without brackets"),
    ('[node]\nbind = "300.1.2.3"', "node.bind", "neither an IP address"),
    ('[node]\nbind = "a..b"', "node.bind", "neither an IP address"),
    ('[node]\nbind = "-a"', "node.bind", "neither an IP address"),
    (f'[node]\nbind = "{"a." * 127}a"', "node.bind", "neither an IP address"),
    ('[node]\ndata_dir = ""', "node.data_dir", "is empty"),
    ('[node]\ndata_dir = "tls/node.pem"', "node.data_dir", "is not a folder"),
    (f'[node]\ndata_dir = "{"x" * 300}"', "node.data_dir", "File name too long"),
    ("[node]\nretention_days = -1", "node.retention_days = -1", "greater than or equal to 0"),
    ('[node]\ndatabase = "sqlite:///x"', "node.database: should be", "postgresql+psycopg://USER:PASSWORD@HOST"),
    ('[node]\ndatabase = "postgresql+psycopg://h"', "node.database: should be", "postgresql+psycopg://"),
    (f'receive = {{ allow = [{{ {PEER}, port = 70000 }}] }}', "receive.allow[0].port = 70000:", "port = 104"),
    (f'receive = {{ allow = [{{ {PEER} }}, {{ {PEER}, prot = 4 }}] }}', "receive.allow[1].prot:", "did you mean port?"),
    (f'receive = {{ allow = [{{ {PEER} }}, {{ {PEER} }}] }}', "receive.allow: A at h: is there twice", "allow = [{"),
    ('receive = { allow = [{ ae_title = "A" }] }', "receive.allow[0].host: is missing", 'host = "127.0.0.1"'),
    ("receive = { allow = 5 }", "receive.allow = 5: should be an array", 'allow = [{ ae_title = "PACS"'),
    ('receive = { allow = ["PACS"] }', 'receive.allow[0] = "PACS": should be a table', 'allow = [{ ae_title = "PACS"'),
    ("[receive]\nmax_associations = 0", "receive.max_associations = 0", "max_associations = 50"),
    ("[receive]\nidle_timeout_s = 0", "receive.idle_timeout_s = 0", "greater than 0"),
    ("[receive]\nidle_timeout_s = nan", "receive.idle_timeout_s", "finite"),
    ("[receive]\nidle_timeout_s = true", "receive.idle_timeout_s = true", "should be a number"),
    ("[receive]\ndisk_watermark_mb = 1.5", "receive.disk_watermark_mb = 1.5", "integer"),
    ("[receive.tls]", "receive.tls.certificate: is missing", 'certificate = "tls/node.pem"'),
    ('[receive.tls]\ncertificate = "none.pem"', 'receive.tls.certificate = "none.pem"', "No such file"),
    ('[receive.tls]\nkey = "tls"', 'receive.tls.key = "tls"', "Is a directory"),
    (
        '[receive.tls]\ncertificate = "tls/node.pem"\nkey = "tls/node.key"',
        "receive.tls.require_client_certificate = true: needs ca", "example",
    ),
    ("[send.tls]", "send.tls.ca: is missing", 'ca = "tls/ca.pem"'),
    ('[send.tls]\nca = "tls/ca.pem"\nkey = "tls/node.key"', "send.tls.key", "both or neither"),
    ('[send.tls]\nca = "tls/ca.pem"\ncertificate = "tls/node.pem"', "send.tls.key", "both or neither"),
    ('[analyse]\nbundle = "nix"', 'analyse.bundle = "nix": no model bundle', "cxr3-lite2"),
    (f'[analyse]\nbundle = "{"x" * 300}"', "analyse.bundle", "File name too long"),
    ('[analyse]\nengine = "gpu"', "should be 'auto', 'cpu', 'cpu-bf16', 'cpu-int8' or 'tensorrt'", 'engine = "auto"'),
    ("[analyse]\nbatch_size = 0", "analyse.batch_size = 0", "batch_size = 16"),
    ("analyse = { stat = [{}] }", "analyse.stat[0]: should hold either", 'stat = [{ attribute = "Requested'),
    ('analyse = { stat = [{ attribute = "Modality" }] }', "analyse.stat[0]: should hold either", "calling_ae"),
    (
        'analyse = { stat = [{ attribute = "Modality", value = "DX", calling_ae = "ER" }] }',
        "analyse.stat[0]: should hold either", "calling_ae",
    ),
    (
        'analyse = { stat = [{ attribute = "RequestedProcedurePriorty", value = "STAT" }] }',
        "analyse.stat[0].attribute", "is no DICOM keyword; did you mean RequestedProcedurePriority?",
    ),
    ('analyse = { stat = [{ attribute = "", value = "x" }] }', "analyse.stat[0].attribute", "no DICOM keyword"),
    ('analyse = { stat = [{ attribute = "PixelData", value = "x" }] }', "analyse.stat[0].attribute", "compare"),
    ('analyse = { stat = [{ attribute = "Modality", value = "" }] }', "analyse.stat[0].value", "is empty"),
    ('analyse = { stat = [{ attribute = "SOPClassUID", value = "1." }] }', "analyse.stat[0]", "UID"),
    ("[report]\nstudy_quiet_s = inf", "report.study_quiet_s", "finite"),
    ('[report]\nequipment_purpose = "109102"', "report.equipment_purpose", "table"),
    ('[report]\nequipment_purpose = { value = "12345678901234567", scheme = "DCM", meaning = "X" }',
     "report.equipment_purpose.value", ""),
    ('[report]\nnot_analysed = "no"', "report.not_analysed", "'report' or 'audit'"),
    ("destination = 5", "destination = 5: should be an array", 'destination = [{ name = "pacs"'),
    (PACS.replace("pacs", "a b"), 'destination[0].name = "a b"', "letters, digits"),
    (PACS + PACS, "destination: pacs: is there twice", "destination = ["),
    (PACS + "tls = true", "destination: pacs: tls = true needs the table [send.tls]", "destination = ["),
    ("[receive]\nallow = [{ ae_title = 'A', host = 'a', port = 104, tls = true }]",
     "send: A: tls = true needs the table [send.tls]", "send = {"),
    ("[http]\nport = 11112", "http: http.port = 11112, node.port = 11112: each needs its own port", "http = {"),
    (WHOLE.replace("port = 2762", "port = 8080"), "receive.tls.port = 8080: each needs its own port", "http = {"),
    (
        f'[receive]\nallow = [{{ {PEER}, certificate = "x" }}]',
        "receive.tls: allow names the certificate of A: that needs this table with its ca", "tls = {",
    ),
    (f'[receive]\nallow = [{{ {PEER}, certificate = "" }}]', "receive.allow[0].certificate[0]", "common name"),
    (f'[receive]\nallow = [{{ {PEER}, certificate = "{"ab:" * 19}ab" }}]', "certificate[0]", "that of SHA-256"),
    (f"[receive]\nallow = [{{ {PEER}, certificate = 5 }}]", "receive.allow[0].certificate = 5", "should be an array"),
    ("[receive]\nplain = false", "receive.plain = false: needs the table [receive.tls]", "plain = true"),
    (
        WHOLE.replace("plain = true", "plain = false").replace("port = 2762", "port = 8080"),
        "http.port = 8080, receive.tls.port = 8080: each needs its own port", "http = {",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "mend"), FAULTS)
def test_a_fault_names_the_key_and_how_to_mend_it(folder: Path, text: str, key: str, mend: str) -> None:
    said = fault(folder, text)
    (line,) = (line for line in said.splitlines() if key in line)
    assert mend in line


def test_every_fault_is_told_at_once(folder: Path) -> None:
    said = fault(folder, '[node]\nport = 0\n[report]\nnot_analysed = "x"\n[http]\nport = "x"\n[htpp]\n').splitlines()[
        1:
    ]
    assert [line.split(" =")[0].split(":")[0].strip() for line in said] == [
        "node.port", "report.not_analysed", "http.port", "htpp",
    ]  # fmt: skip


def test_a_certificate_is_named_in_one_form(folder: Path) -> None:
    digits = "0123456789ABCDEF" * 4
    pairs = ":".join(digits[i : i + 2] for i in range(0, 64, 2))
    for named in (f'"{digits}"', f'["{pairs}"]'):
        text = WHOLE.replace('certificate = "ct1.hospital.example"', f"certificate = {named}")
        assert load(folder, text).receive.allow[-1].certificate == (digits.lower(),)
    text = WHOLE.replace('"ct1.hospital.example"', '["CT1.Hospital.example", " Siemens CT 1 ", "FE80::0:1"]')
    assert load(folder, text).receive.allow[-1].certificate == ("ct1.hospital.example", "siemens ct 1", "fe80::1")


def test_without_the_plain_port_its_number_is_free(folder: Path) -> None:
    config = load(folder, WHOLE.replace("plain = true", "plain = false").replace("port = 8080", "port = 11112"))
    assert config.dicom_ports == {"receive.tls.port": 2762}
    assert load(folder, WHOLE).dicom_ports == {"node.port": 11112, "receive.tls.port": 2762}
    assert load(folder, "").dicom_ports == {"node.port": 11112}


@pytest.mark.parametrize(
    ("value", "kept"),
    [("A", "A"), ("  PACS ", "PACS"), ("ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNOP"), ("A B/c.~", "A B/c.~"), ("1", "1")],
)
def test_ae_titles(folder: Path, value: str, kept: str) -> None:
    assert load(folder, f'[node]\nae_title = "{value}"').node.ae_title == kept


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("10.0.0.5", "10.0.0.5"), ("0:0::1", "::1"), ("FE80::A", "fe80::a"), ("pacs", "pacs"),
        ("pacs_1.ward-2.example.", "pacs_1.ward-2.example."), ("3com.example", "3com.example"),
    ],
)  # fmt: skip
def test_hosts(folder: Path, value: str, kept: str) -> None:
    assert load(folder, f'[node]\nbind = "{value}"').node.bind == kept


def test_paths_start_at_the_files_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(folder, "").node.data_dir == folder / "var"
    assert load(folder, '[node]\ndata_dir = "/srv/cxr"').node.data_dir == Path("/srv/cxr")
    (folder / "cxrnode.toml").write_text("")
    monkeypatch.chdir(folder)
    assert load_config(Path("cxrnode.toml")).node.data_dir == folder / "var"


def test_a_bundle_folder_starts_there_too(folder: Path) -> None:
    mine = folder / "models" / "mine"
    mine.mkdir(parents=True)
    (mine / "bundle.json").touch()
    assert load(folder, '[analyse]\nbundle = "models/mine"').analyse.bundle == str(mine)
    assert load(folder, '[analyse]\nbundle = "cxr3-lite2"').analyse.bundle == "cxr3-lite2"


def test_it_is_frozen_and_travels_between_processes(folder: Path) -> None:
    config = load(folder, WHOLE)
    with pytest.raises(ValidationError):
        config.node.port = 5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config
    assert Config(node=Node(port=1), http=Http(port=2), receive=Receive()).node.port == 1


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file.*cxrnode config example"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_a_file_that_is_not_toml(folder: Path) -> None:
    assert re.search(r"not valid TOML: .*\(at line 3, column 8\)", fault(folder, "[node]\nport = 1\nport = \n"))
    assert "not valid TOML" in fault(folder, "[node]\nport = 1\nport = 2\n")
    assert SECRET not in fault(folder, f'[node]\ndatabase = "{URL}\n')
    assert "not valid TOML" in fault(folder, f"[node]\nport = {'9' * 5000}\n")


def test_a_file_in_another_encoding(folder: Path) -> None:
    (folder / "cxrnode.toml").write_bytes("# Röntgen".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 3\)"):
        load_config(folder / "cxrnode.toml")
    (folder / "cxrnode.toml").write_bytes("\N{BYTE ORDER MARK}[node]\r\nport = 104\r\n".encode())  # Windows' editor
    assert load_config(folder / "cxrnode.toml").node.port == 104


# --- the environment ------------------------------------------------------------------------------------------------


def test_variables_go_before_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NODE__PORT": "104", "NODE__AE_TITLE": "123", "NODE__DATABASE": URL,
        "RECEIVE__ALLOW": '[{ ae_title = "ER", host = "::1" }]',
        "RECEIVE__IDLE_TIMEOUT_S": "2.5", "HTTP": "{ port = 81 }", "HTTP__BIND": "::1", "REQUIRE": "interop",
        "DESTINATION": '[{ name = "x", ae_title = "X", host = "x", port = 1, storage_commitment = false }]',
    }.items():  # fmt: skip
        monkeypatch.setenv(f"CXRNODE_{name}", value)
    config = load(folder, EXAMPLE)
    assert (config.node.port, config.node.ae_title, config.node.database.get_secret_value()) == (104, "123", URL)
    assert [(a.ae_title, a.host, a.port) for a in config.receive.allow] == [("ER", "::1", None)]
    assert (config.receive.idle_timeout_s, config.receive.max_associations) == (2.5, 50)
    assert (config.http.port, config.http.bind) == (81, "::1")
    assert [(d.name, d.storage_commitment) for d in config.destination] == [("x", False)]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CXRNODE_NODE__PORT", "x", 'node.port = "x" (from CXRNODE_NODE__PORT): should be a valid integer'),
        ("CXRNODE_NODE__PROT", "1", "node.prot (from CXRNODE_NODE__PROT): unknown key; did you mean port?"),
        ("CXRNODE_NDOE__PORT", "1", "ndoe (from CXRNODE_NDOE__PORT): unknown key; did you mean node?"),
        ("CXRNODE_NODE", "1", 'node = "1" (from CXRNODE_NODE): should be a table'),
        ("CXRNODE_RECEIVE__ALLOW", "[{", 'receive.allow = "[{" (from CXRNODE_RECEIVE__ALLOW): should be an array'),
        (
            "CXRNODE_RECEIVE__ALLOW", '[{ ae_title = "A" }]',
            "receive.allow[0].host (from CXRNODE_RECEIVE__ALLOW): is missing",
        ),
        ("CXRNODE_RECEIVE__ALLOW__0__PORT", "1", "CXRNODE_RECEIVE__ALLOW__0__PORT: receive.allow.0 is no table"),
        ("CXRNODE_NODE__PORT__X", "1", "CXRNODE_NODE__PORT__X: node.port is no table"),
        ("CXRNODE___PORT", "1", '"" (from CXRNODE___PORT): unknown key'),
    ],
)  # fmt: skip
def test_a_variable_that_is_wrong_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as e:
        load(folder, EXAMPLE)
    assert said in str(e.value)


# --- secrets --------------------------------------------------------------------------------------------------------


def test_a_password_is_kept_and_not_shown(folder: Path) -> None:
    config = load(folder, f'[node]\ndatabase = "{URL}"')
    assert config.node.database.get_secret_value() == URL
    assert config.node.database_place == "postgresql+psycopg://db.example:5432/cxrnode"
    assert load(folder, "").node.database_place == "sqlite"
    assert SECRET not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"


@pytest.mark.parametrize(
    "text",
    [
        f'[node]\ndatabase = "{URL.replace("postgresql+psycopg", "mysql")}"',
        f'[node]\ndatabase = "postgresql+psycopg://u:{SECRET}:x@h:p/db"',
        f'[node]\ndatabase = ["{URL}"]',
        f'[node]\ndatabse = "{URL}"',
        f'database = "{URL}"',
        f'node = "{URL}"',
        f'[node]\nbind = "{URL}"',
        f'[node]\nbind = "postgresql://u:a@{SECRET}@h"',
        f'[[node]]\ndatabase = "{URL}"',
        f'[analyse]\nbundle = "{URL}"',
        f'[node.database]\npassword = "{SECRET}"',
    ],
)
def test_a_password_is_not_repeated_by_an_error(folder: Path, text: str) -> None:
    path = folder / "cxrnode.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_config(path)
    chain: list[BaseException | None] = [e.value, e.value.__cause__, e.value.__context__]
    assert not any(SECRET in str(error) for error in chain)


def test_who_else_reports_on_commitment(tmp_path: Path) -> None:
    """At the destination's host, where none is given; nobody for a destination that is not asked."""
    file = tmp_path / "cxrnode.toml"
    for value, others in (
        ('"B"', [("B", "h")]),
        ('["B", { ae_title = "C", host = "10.0.0.6" }]', [("B", "h"), ("C", "10.0.0.6")]),
        ("[]", []),
    ):
        file.write_text(f"{PACS}commitment_ae_titles = {value}\n")
        (destination,) = load_config(file).destination
        assert list(destination.reporters) == [("A", "h"), *others]
    file.write_text(f"{PACS}storage_commitment = false\n")
    assert load_config(file).destination[0].reporters == ()
