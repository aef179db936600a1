"""Lists of clips: folders, CSV, JSONL, and what is said about broken ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from omniavatar.errors import InputError
from omniavatar.training.data.clip import Limits, Unusable, open_clip
from omniavatar.training.data.lists import DEFAULT_PROMPT, Entry, identity, read_entries
from tests.media.samples import single_line


def write(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def test_a_folder_gives_its_videos_with_what_stands_beside_them(tmp_path: Path) -> None:
    for name in (
        "b.mp4",
        "b.wav",
        "sub/a.MKV",
        "sub/a.flac",
        "sub/a.mp3",
        "c.mov",
        "notes.txt",
        "._b.mp4",
        ".trash/d.mp4",
    ):
        write(tmp_path / name)
    write(tmp_path / "b.txt", "\ufeffA woman\n talks. \n")
    write(tmp_path / "c.txt", " \n")
    b, c, a = read_entries(tmp_path)
    assert b == Entry(tmp_path / "b.mp4", tmp_path / "b.wav", "A woman talks.", repr(str(tmp_path / "b.mp4")))
    assert (c.video, c.audio, c.prompt) == (tmp_path / "c.mov", None, DEFAULT_PROMPT)
    assert (a.video, a.audio) == (tmp_path / "sub/a.MKV", tmp_path / "sub/a.mp3")
    assert read_entries(tmp_path, prompt="Hello")[1].prompt == "Hello"


def test_a_csv_and_the_same_as_jsonl(tmp_path: Path) -> None:
    absolute = tmp_path / "elsewhere" / "b.mp4"
    table = write(
        tmp_path / "clips.csv",
        f'\ufeffvideo, prompt ,audio\r\nclips/a.mp4,"A man, who\r\ntalks",a.wav\r\n\r\n{absolute},,\r\nc.mp4\r\n',
    )
    rows = [
        {"video": "clips/a.mp4", "audio": "a.wav", "prompt": "A man, who\r\ntalks"},
        {"video": str(absolute), "audio": None},
        {"video": "c.mp4", "prompt": "", "audio": ""},
    ]
    lines = write(tmp_path / "clips.jsonl", "\n\n".join(map(json.dumps, rows)))
    expected = [
        (tmp_path / "clips/a.mp4", tmp_path / "a.wav", "A man, who talks"),
        (absolute, None, DEFAULT_PROMPT),
        (tmp_path / "c.mp4", None, DEFAULT_PROMPT),
    ]
    for path, places in ((table, (2, 5, 6)), (lines, (1, 3, 5))):
        entries = read_entries(path)
        assert [(entry.video, entry.audio, entry.prompt) for entry in entries] == expected
        assert [entry.place for entry in entries] == [f"{path}:{line}" for line in places]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "video,promt\n", r"a\.csv:1: unknown column 'promt'; did you mean 'prompt'"),
        ("a.csv", "Video\n", r"unknown column 'Video'; did you mean 'video'"),
        ("a.csv", "\nprompt\nx\n", r"a\.csv:2: there is no column 'video'"),
        ("a.csv", "video,video\n", r"column 'video' stands there twice"),
        ("a.csv", 'video\nb.mp4\n"c.mp4\n', r"a\.csv:3: .*write it as CSV"),
        ("a.csv", "video\n", "names no clip"),
        ("a.csv", "", "names no clip"),
        ("a.jsonl", "\n", "names no clip"),
        ("a.xlsx", "", r"is not a list of clips; give a folder, a \.csv or a \.jsonl file"),
        ("folder/a.txt", "", "holds no video; it needs files that end in .3gp, "),
    ],
)
def test_a_broken_list_is_explained(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        read_entries(path.parent if name.startswith("folder") else path)
    single_line(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.csv", "video,prompt\n{}b.mp4,Hi, there\n", "3 values for 2 columns; put quotation marks"),
        ("a.csv", "video,prompt\n{},Hello\n", "no video is named"),
        ("a.jsonl", '{}{"video": \n', "not JSON: .*an object of its own"),
        ("a.jsonl", "{}" + "[" * 100000, "not JSON"),
        ("a.jsonl", '{}["a.mp4"]', r"\[\"a.mp4\"\] is not an object"),
        ("a.jsonl", '{}{"video": 3}', "video is 3; give a text"),
        ("a.jsonl", '{}{"vido": "a.mp4"}', "unknown key 'vido'; did you mean 'video'"),
        ("a.jsonl", '{}{"prompt": "x"}', "no video is named"),
    ],
)
def test_a_bad_row_is_a_fault_of_its_clip(tmp_path: Path, name: str, content: str, fault: str) -> None:
    """The rows before it are as they were; whether the run ends is not for the list to say."""
    good = "good.mp4,\n" if name == "a.csv" else '{"video": "good.mp4"}\n'
    one, bad = read_entries(write(tmp_path / name, content.replace("{}", good, 1)))
    assert (one.video, one.fault) == (tmp_path / "good.mp4", None)
    assert bad.fault is not None
    assert re.match(fault, bad.fault)
    assert "\n" not in bad.fault
    with pytest.raises(Unusable, match=fault) as caught:
        open_clip(bad, Limits())
    assert caught.value.kind == "bad entry"


@pytest.mark.parametrize(("caption", "file"), [("caption", "file_name"), ("text", "video"), ("Description", "path")])
def test_names_of_other_programs_are_understood(tmp_path: Path, caption: str, file: str) -> None:
    table = read_entries(write(tmp_path / "a.csv", f"{file},{caption}\na.mp4,Hello\n"))
    lines = read_entries(write(tmp_path / "a.jsonl", json.dumps({file: "a.mp4", caption: "Hello"})))
    assert [(entry.video, entry.prompt) for entry in (*table, *lines)] == [(tmp_path / "a.mp4", "Hello")] * 2


def test_two_names_for_one_thing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fault = "the {} 'prompt' stands there twice, as 'caption' and 'text'; name each once"
    with pytest.raises(InputError, match=fault.format("column")):
        read_entries(write(tmp_path / "a.csv", "video,caption,text\na.mp4,Hi,Ho\n"))
    (entry,) = read_entries(write(tmp_path / "a.jsonl", '{"video": "a.mp4", "caption": "Hi", "text": "Ho"}'))
    assert entry.fault == fault.format("key")
    (entry,) = read_entries(write(tmp_path / "b.csv", "video,prompt,caption\na.mp4,Hi,Ho\n"))
    assert entry.prompt == "Hi"
    assert caplog.messages == [f"{tmp_path / 'b.csv'}: not used: caption; used are video, audio, prompt"]


def test_the_prompt_of_a_row_may_lie_beside_its_video(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "A man\ntalks.")
    write(tmp_path / "b.txt", "Another one.")
    first, second, third = read_entries(write(tmp_path / "a.csv", "video,prompt\na.mp4,\nb.mp4,Hi\nc.mp4,\n"))
    assert [first.prompt, second.prompt, third.prompt] == ["A man talks.", "Hi", DEFAULT_PROMPT]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "store" / "a.mp4")
    write(tmp_path / "other" / "b.mp4")
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "linked").symlink_to(tmp_path / "store")
    (clips / "b.mp4").symlink_to(tmp_path / "other" / "b.mp4")
    (tmp_path / "store" / "back").symlink_to(clips)
    (tmp_path / "store" / "self").symlink_to(tmp_path / "store")
    assert [entry.video for entry in read_entries(clips)] == [clips / "b.mp4", clips / "linked" / "a.mp4"]


def test_the_home_folder_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (entry,) = read_entries(write(tmp_path / "a.csv", "video,audio\n~/a.mp4,~/a.wav\n"))
    assert (entry.video, entry.audio) == (tmp_path / "home" / "a.mp4", tmp_path / "home" / "a.wav")


def test_other_columns_are_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = read_entries(write(tmp_path / "a.csv", "id,video,fps,,\n7,a.mp4,25,,\n"))
    lines = read_entries(write(tmp_path / "a.jsonl", '{"id": 7, "video": "a.mp4"}'))
    assert [(entry.video, entry.fault) for entry in (*table, *lines)] == [(tmp_path / "a.mp4", None)] * 2
    assert caplog.messages == [
        f"{tmp_path / 'a.csv'}: not used: id, fps; used are video, audio, prompt",
        f"{tmp_path / 'a.jsonl'}: not used: id; used are video, audio, prompt",
    ]


def test_clips_are_the_same_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And others when one is added, changed, or described in other words."""

    def told(path: Path) -> dict[str, object]:
        return identity(read_entries(path), path)

    clips = write(tmp_path / "clips" / "a.mp4").parent
    before = told(clips)
    monkeypatch.chdir(tmp_path)
    assert told(Path("clips")) == before
    (tmp_path / "clips").rename(tmp_path / "moved")
    assert told(Path("moved")) == before
    write(Path("moved", "a.txt"), "A man talks.")
    worded = told(Path("moved"))
    assert {name for name in before if before[name] != worded[name]} == {"prompts"}
    write(Path("moved", "a.mp4"), "more")
    changed = told(Path("moved"))
    assert {name for name in before if worded[name] != changed[name]} == {"files"}
    write(Path("moved", "b.mp4"))
    assert told(Path("moved"))["count"] == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("none.csv", "none"):
        with pytest.raises(InputError, match=f"cannot read the list of clips '.*{name}': No such file"):
            read_entries(tmp_path / name)
    write(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    write(tmp_path / "b.mp4")
    bad, good = read_entries(tmp_path)
    assert bad.fault == f"cannot read the prompt '{tmp_path / 'a.txt'}': it is not UTF-8 text"
    assert (good.prompt, good.fault) == (DEFAULT_PROMPT, None)
