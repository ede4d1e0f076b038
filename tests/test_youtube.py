"""Links of a list come down from a server on the loopback: whole, cut off, refused, again."""

import pytest
from servers import SOUNDS, Page, Site, outcomes, serving, sound

from shards.__main__ import main
from shards.errors import UserError
from shards.sources import youtube


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_links_come_down_whole_and_only_once(tmp_path, capsys):
    links, out = tmp_path / "links.csv", tmp_path / "100% out"
    with serving(Site(sound, cut={"/b.wav": 2})) as site:
        links.write_text(
            f"link,label\n# mine\n{site.url}/a.wav,dog bark\n{site.url}/b.wav rain\n"
            f"{site.url}/gone.wav,rain\n\n{site.url}/c.wav\n"
        )
        assert main(["download", "youtube", str(links), str(out)]) == 0
        first = {row["link"].rpartition("/")[2]: row for row in outcomes(out)}
        asked = len(site.asked)
        gets = [ranges for method, path, ranges in site.asked if path == "/b.wav"]
        assert main(["download", "youtube", str(links), str(out)]) == 0
        again = site.asked[asked:]
    assert {name: row["status"] for name, row in first.items()} == {
        "a.wav": "done", "b.wav": "done", "gone.wav": "failed", "c.wav": "done",
    }  # fmt: skip
    assert first["gone.wav"]["reason"].count("404") and "\x1b" not in first["gone.wav"]["reason"]
    for name, label in (("a.wav", "dog bark"), ("b.wav", "rain"), ("c.wav", "unlabelled")):
        file = out / first[name]["file"]
        assert file.parent.name == label
        assert file.read_bytes() == SOUNDS[f"/{name}"]
    half = len(SOUNDS["/b.wav"]) // 2
    assert any(r and 0 < int(r[6:-1]) <= half for r in gets)  # it went on, not over again
    assert {path for _, path, _ in again} == {"/gone.wav"}
    assert len([f for f in out.rglob("*") if f.is_file()]) == 4
    assert "downloaded 0, there already 3, failed 1" in capsys.readouterr().out


def test_a_partial_file_of_a_killed_download_goes_on(tmp_path):
    links, out = tmp_path / "links.txt", tmp_path / "out"
    with serving(Site(sound)) as site:
        links.write_text(f"{site.url}/a.wav x\n")
        assert main(["download", "youtube", str(links), str(out)]) == 0
        (row,) = outcomes(out)
        file, whole = out / row["file"], SOUNDS["/a.wav"]
        file.unlink()
        file.with_name(file.name + ".part").write_bytes(whole[:30000])
        assert main(["download", "youtube", str(links), str(out)]) == 0
        assert any(r and r.startswith("bytes=30000-") for _, _, r in site.asked)
    assert file.read_bytes() == whole


def test_a_changed_label_moves_the_file(tmp_path):
    links, out = tmp_path / "links.txt", tmp_path / "out"
    with serving(Site(sound)) as site:
        for label in ("old", "new"):
            links.write_text(f"{site.url}/a.wav {label}\n")
            assert main(["download", "youtube", str(links), str(out)]) == 0
        assert len([1 for method, _, _ in site.asked if method == "GET"]) <= 2
    assert [f.parent.name for f in out.rglob("*.wav")] == ["new"]


def test_a_page_of_several_is_no_recording(tmp_path):
    links, out = tmp_path / "links.txt", tmp_path / "out"

    def page(path: str) -> Page | None:
        html = "<html><title>two</title>" + "".join(
            f'<audio controls><source src="/{name}.wav" type="audio/wav"></audio>' for name in "ac"
        )
        return sound(path) or (200, {"Content-Type": "text/html"}, html.encode())

    with serving(Site(page)) as site:
        links.write_text(f"{site.url}/list x\n{site.url}/a.wav x\n")
        assert main(["download", "youtube", str(links), str(out)]) == 0
    assert [row["status"] for row in outcomes(out)] == ["failed", "done"]
    assert "playlist" in outcomes(out)[0]["reason"]
    assert len(list(out.rglob("*.wav"))) == 1


def test_a_link_of_another_kind_costs_itself_only(tmp_path):
    links, out = tmp_path / "links.txt", tmp_path / "out"
    with serving(Site(sound)) as site:
        links.write_text(f"file:///etc/hostname x\n{site.url}/a.wav x\n")
        assert main(["download", "youtube", str(links), str(out)]) == 0
    assert [row["status"] for row in outcomes(out)] == ["failed", "done"]


def test_nothing_had_is_exit_code_1(tmp_path, capsys):
    links = tmp_path / "links.txt"
    with serving(Site(sound)) as site:
        links.write_text(f"{site.url}/gone.wav x\n")
        with pytest.raises(SystemExit) as end:
            main(["download", "youtube", str(links), str(tmp_path / "out")])
    assert end.value.code == 1
    assert "failed 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no link in it"),
        ("# only\n\n", "no link in it"),
        ("dog.wav\n", "line 1: 'dog.wav' is no link"),
        ("http://x/a ../../etc\n", "cannot name a folder"),
        ("http://x/a dog\nhttp://x/a cat\n", "line 2: http://x/a is 'dog' and 'cat'"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, told):
    file = tmp_path / "links.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        youtube.read_links(file)


def test_ways_to_write_a_list(tmp_path):
    file = tmp_path / "links.csv"
    file.write_text('http://x/#t=1,"dog bark" # best\nhttp://x/b\train\n"http://x/c,d" e\nhttp://y')
    assert youtube.read_links(file) == {
        "http://x/#t=1": "dog bark", "http://x/b": "rain", "http://x/c,d": "e",
        "http://y": "unlabelled",
    }  # fmt: skip
