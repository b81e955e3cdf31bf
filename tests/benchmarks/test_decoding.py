"""The benchmark of decoders compares what it says, on small images and in one turn."""

from benchmarks import decoding


def test_every_way_is_measured_and_compared_with_pillows() -> None:
    rows = decoding.measure_decoders(decoding.files(((520, 400),)), 1)
    assert set(rows) == {
        f"{kind} {colour} 520x400" for kind in ("JPEG", "PNG") for colour in ("colour", "grey")
    } | {
        "JPEG noise",
        "PNG lines",
    }
    for row in rows.values():
        assert row["Pillow"]["other"] == "0.00"
        assert all(cell["ms"] > 0 for cell in row.values())
        assert float(row["stages.corpus.images.decoding"]["other"]) < 0.5
    assert float(rows["PNG lines"]["libvips, heights first"]["other"]) > float(
        rows["PNG lines"]["stages.corpus.images.decoding"]["other"]
    )


def test_encoders_are_measured() -> None:
    for row in decoding.measure_encoders(1).values():
        assert {cell["other"].split()[1] for cell in row.values()} == {"kB"}
        assert row["stages.corpus.images.decoding"]["other"] == row["libvips 3, sub"]["other"]
