"""NIfTI: what is read, how values become grey, and what is refused by name."""

from __future__ import annotations

import gzip
import random
import struct
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.corpus.images.decoding import Decoded, ImageError
from stages.corpus.images.files import decode_files
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.volumes.nifti import read_nifti
from stages.corpus.volumes.signatures import is_nifti
from tests.conftest import resize_settings
from tests.dicoms import phantom, settings
from tests.volumes import IDENTITY, nifti, nifti_image, phantom_affine, volume_settings

AFFINE = phantom_affine()
VOLUME = phantom()
GOOD = nifti(VOLUME, AFFINE)
SMALL = resize_settings(size=28)
SECRETS = (b"Jane Doe", b"1980-01-02", b"Ward 7")


def decoded(content: bytes, **changes: Any) -> Decoded:
    return decode_files([content], SMALL, settings(), volume_settings(**changes))


def rendered(content: bytes, window: list[float] | None = None) -> NDArray[np.uint8]:
    """8-bit voxels in the order of the file."""
    image = read_nifti(content, settings())
    return image.grey(window)(image.voxels)


def patched(content: bytes, at: int, code: str, *values: Any) -> bytes:
    """With other values in the header."""
    packed = struct.pack(f"<{code}", *values)
    return content[:at] + packed + content[at + len(packed) :]


def refusal(content: bytes, **changes: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_files([content], SMALL, settings(**changes), volume_settings())
    error = caught.value
    assert error.__context__ is None
    return error


# --- what is read


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_both_versions_are_recognised_by_content(version: int, pack: Any) -> None:
    content = pack(nifti(VOLUME, AFFINE, version))
    assert is_nifti(content)
    image = decoded(content, frames=7)
    assert (image.width, image.height, len(image.frames)) == (5, 6, 7)
    assert (image.mode, image.tags, image.representative) == ("uint8", None, 3)
    assert image.image.tobytes() == image.frames[3].tobytes()


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_of_grey_is_read_in_both_byte_orders(dtype: str, order: str) -> None:
    levels = (VOLUME // 2).astype(order + dtype)
    header = nibabel.Nifti1Header(endianness=order)
    image = nibabel.Nifti1Image(levels, AFFINE, header, dtype=levels.dtype)
    image.set_data_dtype(levels.dtype)
    content = image.to_bytes()
    assert content[:4] == struct.pack(f"{order}i", 348)
    np.testing.assert_array_equal(rendered(content, IDENTITY), VOLUME // 2)


@examples(max_examples=30, deadline=None)
@given(
    st.floats(0.001, 1000).flatmap(lambda size: st.sampled_from((size, -size))),
    st.floats(-1e4, 1e4),
)
def test_values_are_scaled_as_nibabel_scales_them(slope: float, inter: float) -> None:
    image = nifti_image(VOLUME.astype(np.int16), AFFINE)
    content = patched(bytes(image.to_bytes()), 112, "ff", slope, inter)
    values = np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj)
    low, high = values.min(), values.max()
    window = [float(low + high) / 2 + 0.5, max(float(high - low), 1.0) + 1]
    expected = np.clip((values - window[0] + 0.5) / (window[1] - 1) + 0.5, 0, 1) * 255
    np.testing.assert_allclose(rendered(content, window), expected, atol=0.51)


@pytest.mark.parametrize("slope", [0.0, float("nan"), float("inf")])
def test_a_slope_that_is_none_leaves_values_as_stored(slope: float) -> None:
    content = patched(GOOD, 112, "ff", slope, 5.0)
    np.testing.assert_array_equal(rendered(content, IDENTITY), VOLUME)
    np.testing.assert_array_equal(nibabel.Nifti1Image.from_bytes(content).dataobj, VOLUME)


def test_without_a_window_percentiles_become_black_and_white() -> None:
    ramp = np.arange(2000, dtype=np.int16).reshape(10, 10, 20)
    ramp[0, 0, 0], ramp[-1, -1, -1] = -30_000, 30_000
    levels = rendered(nifti(ramp, AFFINE))
    low, high = np.sort(ramp, axis=None)[[10, 1989]]
    np.testing.assert_array_equal(
        levels, np.rint(np.clip((ramp - float(low)) / (high - low), 0, 1) * 255)
    )


def test_all_slices_share_the_window_of_the_volume() -> None:
    halves = np.concatenate([np.full((4, 5, 3), 10), np.full((4, 5, 3), 90)], axis=2)
    levels = rendered(nifti(halves.astype(np.float32), AFFINE))
    assert (levels[..., :3] == 0).all()
    assert (levels[..., 3:] == 255).all()


def test_a_lesion_of_few_voxels_is_not_lost() -> None:
    mask = np.zeros((20, 20, 20), dtype=np.uint8)
    mask[3, 4, 5] = 1
    assert np.argwhere(rendered(nifti(mask, AFFINE))).tolist() == [[3, 4, 5]]


def test_a_negative_slope_inverts() -> None:
    content = patched(nifti(VOLUME, AFFINE), 112, "ff", -1.0, 255.0)
    np.testing.assert_array_equal(rendered(content, IDENTITY), 255 - VOLUME)


def test_dimensions_of_size_one_are_left_out() -> None:
    for shape in ((5, 6, 7, 1), (5, 6, 7, 1, 1), (5, 6, 7, 1, 1, 1, 1)):
        content = nifti(VOLUME.reshape(shape), AFFINE)
        np.testing.assert_array_equal(rendered(content, IDENTITY), VOLUME)


def test_a_single_slice_is_an_image_of_one_frame() -> None:
    image = decoded(nifti(VOLUME[:, :, 0], AFFINE), frames=4)
    assert (image.width, image.height, image.frames) == (5, 6, ())


def test_the_frame_that_stands_for_the_volume_is_that_of_the_settings() -> None:
    first = decode_files([GOOD], SMALL, settings(frame="first"), volume_settings())
    assert first.representative == 0
    assert first.image.tobytes() == first.frames[0].tobytes()


def test_extensions_are_skipped() -> None:
    image = nifti_image(VOLUME, AFFINE)
    for code in (0, 2, 4, 6, 40):
        extension = nibabel.nifti1.Nifti1Extension(code, b"Jane Doe, not DICOM " * 40)
        image.header.extensions.append(extension)
    image.update_header()
    np.testing.assert_array_equal(rendered(image.to_bytes(), IDENTITY), VOLUME)


# --- what is refused


def test_one_half_of_a_pair_is_refused_by_name() -> None:
    pair = nibabel.Nifti1Pair(VOLUME, AFFINE)
    error = refusal(bytes(pair.header.binaryblock) + b"\0" * 4)
    assert "two files, .hdr and .img" in str(error)
    assert error.reason is Reason.IMAGE_FORMAT


@pytest.mark.parametrize(
    ("voxels", "why"),
    [
        (np.zeros((4, 5, 6), np.complex64), "type complex64"),
        (np.zeros((4, 5, 6), np.complex128), "type complex128"),
        (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
        (
            np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]),
            "colours",
        ),
    ],
)
def test_what_is_not_grey_is_refused_by_name(voxels: NDArray[Any], why: str) -> None:
    error = refusal(nifti(voxels, AFFINE))
    assert why in str(error)
    assert error.reason is Reason.IMAGE_FORMAT


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (4, 5, 1, 3), (4, 5, 6, 1, 3)])
def test_several_volumes_in_a_file_are_refused_with_their_size(shape: tuple[int, ...]) -> None:
    error = refusal(nifti(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), AFFINE))
    assert f"{len(shape)} dimensions, {' x '.join(map(str, shape))}:" in str(error)
    assert error.reason is Reason.IMAGE_VOLUME


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("window", [None, IDENTITY])
def test_values_that_are_not_finite_are_counted(value: float, window: Any) -> None:
    levels = VOLUME.astype(np.float32)
    levels[0, 0, :3] = value
    with pytest.raises(ImageError, match="3 of 210 voxels are not finite"):
        decoded(nifti(levels, AFFINE), window=window)


def test_a_constant_volume_is_refused() -> None:
    for levels in (np.full((4, 5, 6), 7, np.int16), np.full((4, 5, 6), -0.5, np.float32)):
        assert "the same value" in str(refusal(nifti(levels, AFFINE)))


def test_values_that_scaling_makes_infinite_are_refused() -> None:
    levels = np.zeros((4, 5, 6))
    levels[0] = 1e300
    levels[1] = -1e300
    content = patched(nifti(levels, AFFINE), 112, "ff", 1e30, 0.0)
    assert "not finite numbers after" in str(refusal(content))


def test_limits_are_checked_before_a_voxel_is_read() -> None:
    error = refusal(patched(GOOD, 40, "8h", 3, 30_000, 30_000, 30_000, 1, 1, 1, 1))
    assert "30000 x 30000 x 30000" in str(error)
    assert "dicom.max_total_pixels" in str(error)
    assert error.reason is Reason.IMAGE_TOO_LARGE
    with pytest.raises(ImageError, match=r"dicom\.max_frames"):
        decode_files([GOOD], SMALL, settings(max_frames=6), volume_settings())


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(GOOD + bytes(50_000_000))
    assert len(bomb) < 60_000
    error = refusal(bomb)
    assert "more than 1 MiB (dicom.max_inflated_mb)" in str(error)
    assert error.reason is Reason.IMAGE_TOO_LARGE
    many = gzip.compress(GOOD) + gzip.compress(bytes(2**19)) * 100
    assert refusal(many).reason is Reason.IMAGE_TOO_LARGE


def test_members_of_a_gzip_file_are_joined() -> None:
    content = gzip.compress(GOOD[:400]) + gzip.compress(b"") * 1000 + gzip.compress(GOOD[400:])
    np.testing.assert_array_equal(rendered(content, IDENTITY), VOLUME)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (GOOD[:-1], "fewer than the header says"),
        (GOOD[:360], "fewer than the header says"),
        (GOOD[:350], "outside of the file"),
        (gzip.compress(GOOD, mtime=0)[:-3], "cannot be unpacked"),
        (gzip.compress(GOOD, mtime=0)[:-1] + b"\xff", "cannot be unpacked"),
        (gzip.compress(GOOD, mtime=0) + b"text", "cannot be unpacked"),
        (gzip.compress(b"text" * 500, mtime=0), "packed by gzip, and not NIfTI"),
        (gzip.compress(GOOD, mtime=0)[:60], "packed by gzip, and not NIfTI"),
        (GOOD + bytes(30), "more, by a slice or more"),
        (patched(GOOD, 40, "8h", 3, 5, 6, 9, 1, 1, 1, 1), "fewer than the header says"),
        (patched(GOOD, 40, "8h", 3, 5, 6, 3, 1, 1, 1, 1), "more, by a slice or more"),
        (patched(GOOD, 40, "8h", 3, 5, -6, 7, 1, 1, 1, 1), "has not two sizes"),
        (patched(GOOD, 40, "8h", 3, 5, 0, 7, 1, 1, 1, 1), "has not two sizes"),
        (patched(GOOD, 40, "8h", 1, 210, 1, 1, 1, 1, 1, 1), "has not two sizes"),
        (patched(GOOD, 40, "8h", 0, 5, 6, 7, 1, 1, 1, 1), "header is damaged"),
        (patched(GOOD, 40, "8h", 9, 5, 6, 7, 1, 1, 1, 1), "header is damaged"),
        (patched(GOOD, 40, "8h", -3, 5, 6, 7, 1, 1, 1, 1), "header is damaged"),
        (patched(GOOD, 70, "h", 1), "header is damaged"),
        (patched(GOOD, 70, "h", 999), "header is damaged"),
        (patched(GOOD, 108, "f", float("nan")), "header is damaged"),
        (patched(GOOD, 108, "f", float("inf")), "header is damaged"),
        (patched(GOOD, 108, "f", 1e30), "outside of the file"),
        (patched(GOOD, 108, "f", -352.0), "damaged"),
        (patched(GOOD, 108, "f", 80.0), "damaged"),
        (patched(GOOD, 112, "ff", 1.0, float("inf")), "header is damaged"),
    ],
)
def test_damaged_files_are_refused_by_what_is_wrong(content: bytes, why: str) -> None:
    assert why in str(refusal(content))


def test_an_offset_of_zero_is_that_after_the_header() -> None:
    np.testing.assert_array_equal(rendered(patched(GOOD, 108, "f", 0.0), IDENTITY), VOLUME)


def test_texts_of_the_header_reach_no_message(caplog: pytest.LogCaptureFixture) -> None:
    image = nifti_image(VOLUME, AFFINE)
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = SECRETS
    content = bytes(image.to_bytes())
    messages = [
        str(refusal(part))
        for part in (
            content[:-1],
            patched(content, 40, "8h", 3, 5, 6, 9, 1, 1, 1, 1),
            patched(content, 70, "h", 999),
            patched(content, 108, "f", 80.0),
            patched(content, 252, "hh", 9000, -9000)[:-1],
        )
    ]
    text = " ".join([*messages, caplog.text, repr(read_nifti(content, settings()))])
    assert not [secret for secret in SECRETS if secret.decode() in text]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("plane", ["acquired", "sagittal"])
def test_damage_of_any_kind_is_read_or_refused(version: int, pack: Any, plane: str) -> None:
    rng = random.Random(f"{version} {plane}")
    whole = nifti(VOLUME.astype(np.float32), AFFINE, version)
    ends = 0
    for _ in range(250):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            damaged[rng.randrange(0, 560)] = rng.randrange(256)
        content = bytes(pack(bytes(damaged)))
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        elif rng.random() < 0.3:
            flipped = rng.randrange(len(content))
            content = content[:flipped] + bytes([rng.randrange(256)]) + content[flipped + 1 :]
        try:
            image = decoded(content, plane=plane, frames=3)
        except ImageError:
            ends += 1
            continue
        assert image.image.size == (28, 28)
        for frame in image.frames[:3]:
            assert frame.mode == "RGB"
    assert 0 < ends < 250


def test_a_file_that_is_dicom_as_well_is_read_as_dicom() -> None:
    both = GOOD[:128] + b"DICM" + GOOD[132:]
    assert is_nifti(both)
    assert "DICOM" in str(refusal(both)) or "TransferSyntax" in str(refusal(both))
