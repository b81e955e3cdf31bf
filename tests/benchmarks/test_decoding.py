"""The decoder benchmark compares decoders with Pillow's, on small images and in one turn."""

from benchmarks import decoding


def test_every_decoder_is_measured_and_compared_with_pillows() -> None:
    rows = decoding.measure_decoders(decoding.files(((520, 400),)), 1)
    assert set(rows) == {
        "JPEG colour 520x400",
        "PNG colour 520x400",
        "JPEG grey 520x400",
        "PNG grey 520x400",
        "JPEG noise",
        "PNG lines",
    }
    for row in rows.values():
        assert row["Pillow"]["other"] == "0.00"
        assert all(cell["ms"] > 0 for cell in row.values())
        assert float(row["stages.corpus.images.decoding"]["other"]) < 0.5
    distances = {way: float(cell["other"]) for way, cell in rows["PNG lines"].items()}
    assert distances["libvips, heights first"] > distances["stages.corpus.images.decoding"]


def test_encoders_are_measured() -> None:
    for row in decoding.measure_encoders(1).values():
        assert {cell["other"].split()[1] for cell in row.values()} == {"kB"}
        assert row["stages.corpus.images.decoding"]["other"] == row["libvips 3, sub"]["other"]
