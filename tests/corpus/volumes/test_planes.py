"""Planes of a volume: where each voxel lands, whatever kind of file it comes from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.corpus.images.decoding import ImageError
from stages.corpus.images.files import decode_files
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.volumes.stacks import FrameStack, read_dicom_stack, read_nifti_stack
from tests.conftest import resize_settings
from tests.dicoms import acquired, colours, enhanced, file, geometry, phantom, series, settings
from tests.volumes import IDENTITY, nifti, nifti_image, phantom_affine, volume_settings

PLANES = ("axial", "coronal", "sagittal")
WAYS = ("axial", "coronal", "sagittal", "prone")
VOLUME = phantom()


def of_series(plane: str, contents: list[bytes], **changes: Any) -> FrameStack:
    wanted = volume_settings(plane=plane, window=IDENTITY, **changes)
    return read_dicom_stack(contents, settings(), wanted, 10**6, stacked=True)


def of_nifti(plane: str, content: bytes, **changes: Any) -> FrameStack:
    wanted = volume_settings(plane=plane, **({"window": IDENTITY} | changes))
    return read_nifti_stack(content, settings(), wanted, 10**6)


def stacked(stack: FrameStack) -> NDArray[np.uint8]:
    return np.stack(list(stack.frames))


def expected(plane: str) -> NDArray[Any]:
    """Slices (through, down, right) of the phantom, from nibabel's canonical orientation."""
    image = nibabel.as_closest_canonical(nifti_image(VOLUME, phantom_affine()))
    right_front_head = np.asarray(image.dataobj)
    left, back, feet = slice(None, None, -1), slice(None, None, -1), slice(None, None, -1)
    if plane == "axial":
        return right_front_head[left, back].transpose(2, 1, 0)
    if plane == "coronal":
        return right_front_head[left, back, feet].transpose(1, 2, 0)
    return right_front_head[:, back, feet].transpose(0, 2, 1)


@pytest.mark.parametrize(("plane", "way"), list(product(PLANES, WAYS)))
def test_a_series_a_file_of_many_frames_and_nifti_give_the_same_planes(
    plane: str, way: str
) -> None:
    wanted = expected(plane)
    shuffled = [4, 0, 2, 1, 3]
    files = series(VOLUME, way)
    frames = len(files)
    of_series_ = of_series(plane, [files[at] for at in [*range(1, frames), 0]])
    order = [at for at in [*shuffled, *range(5, frames)] if at < frames]
    of_enhanced = of_series(plane, [enhanced(VOLUME, way, order)])
    for stack in (of_series_, of_enhanced, of_nifti(plane, nifti(VOLUME, phantom_affine()))):
        np.testing.assert_array_equal(stacked(stack), wanted)
        assert (len(stack.frames), stack.height, stack.width) == wanted.shape
        assert stack.representative == len(wanted) // 2


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_nifti_stored_in_any_direction_shows_the_same_planes(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    orientation = np.array(list(zip(axes, signs, strict=True)))
    image = nifti_image(VOLUME, phantom_affine()).as_reoriented(orientation)
    content = nifti(np.asarray(image.dataobj), image.affine)
    for plane in PLANES:
        np.testing.assert_array_equal(stacked(of_nifti(plane, content)), expected(plane))


@pytest.mark.parametrize(
    ("plane", "index", "row", "column"),
    [("axial", 5, 1, 3), ("coronal", 1, 1, 3), ("sagittal", 1, 1, 1)],
)
def test_a_marked_voxel_lands_where_a_radiologist_looks_for_it(
    plane: str, index: int, row: int, column: int
) -> None:
    """Of 5 x 6 x 7 it is the second from the patient's left, from the front and from the head."""
    marked = np.zeros((5, 6, 7), dtype=np.uint8)
    marked[3, 1, 5] = 200
    for stack in (
        of_series(plane, series(marked)),
        of_nifti(plane, nifti(marked, phantom_affine())),
    ):
        assert np.argwhere(stacked(stack)).tolist() == [[index, row, column]]


def test_acquired_slices_of_nifti_follow_its_third_axis_upright() -> None:
    upright = acquired(VOLUME)
    # rows stored from back to front, columns from left to right, slices from the head down
    turned = VOLUME[::-1, ::-1, ::-1]
    affine = phantom_affine() @ np.diag([-1.0, -1.0, -1.0, 1.0])
    np.testing.assert_array_equal(
        stacked(of_nifti("acquired", nifti(turned, affine))), upright[::-1]
    )
    sagittal = np.moveaxis(VOLUME, 0, 2)
    columns = phantom_affine()[:, [1, 2, 0, 3]]
    np.testing.assert_array_equal(
        stacked(of_nifti("acquired", nifti(sagittal, columns))), acquired(VOLUME, "sagittal")[::-1]
    )


def test_nifti_of_unknown_position_stays_as_it_is_stored() -> None:
    stack = of_nifti("acquired", nifti(VOLUME))
    np.testing.assert_array_equal(stacked(stack), VOLUME.transpose(2, 1, 0))
    with pytest.raises(ImageError, match="coronal, and the file does not say") as caught:
        of_nifti("coronal", nifti(VOLUME))
    assert caught.value.reason is Reason.IMAGE_VOLUME


@pytest.mark.parametrize("degrees", [0.0, 4.0, 6.0, 30.0, 50.0])
@pytest.mark.parametrize("axis", range(3))
def test_an_oblique_volume_is_shown_as_acquired_and_not_cut(degrees: float, axis: int) -> None:
    rotated = np.eye(4)
    first, second = [each for each in range(3) if each != axis]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotated[first, first] = rotated[second, second] = cosine
    rotated[first, second], rotated[second, first] = -sine, sine
    content = nifti(VOLUME, rotated @ phantom_affine())
    assert stacked(of_nifti("acquired", content)).shape in [(7, 6, 5), (7, 5, 6)]
    if degrees < 5:
        np.testing.assert_array_equal(stacked(of_nifti("sagittal", content)), expected("sagittal"))
        return
    angle = min(degrees, 90 - degrees)
    with pytest.raises(ImageError, match=rf"sagittal.*oblique, by {angle:.0f} degrees") as caught:
        of_nifti("sagittal", content)
    assert caught.value.reason is Reason.IMAGE_VOLUME


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 1.0, 0.0, 1.0]),
        np.diag([float("nan"), 1.0, 1.0, 1.0]),
        np.diag([float("inf"), 1.0, 1.0, 1.0]),
        np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    ],
    ids=["zero", "nan", "inf", "flat"],
)
def test_an_affine_of_no_volume_counts_as_unknown(affine: NDArray[np.float64]) -> None:
    whole = nifti_image(VOLUME, phantom_affine())
    header = whole.header.copy()
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = affine[row]
    content = bytes(header.binaryblock) + whole.to_bytes()[348:]
    np.testing.assert_array_equal(stacked(of_nifti("acquired", content)), VOLUME.transpose(2, 1, 0))
    with pytest.raises(ImageError, match="does not say"):
        of_nifti("axial", content)


def tilted(volume: NDArray[Any]) -> list[bytes]:
    """Slices that are parallel and axial, but each further to the front: a tilted gantry."""
    contents = []
    for number, pixels in enumerate(acquired(volume)):
        place = geometry(volume, "axial", number)
        place["ImagePositionPatient"][1] -= 1.5 * number
        contents.append(file(pixels, **place))
    return contents


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (lambda: series(VOLUME, ImagePositionPatient=None), "does not say"),
        (lambda: series(VOLUME, ImageOrientationPatient=None), "does not say"),
        (lambda: series(VOLUME, ImageOrientationPatient=[0] * 6), "does not say"),
        (lambda: series(VOLUME, ImagePositionPatient=[0, 0, 0]), "does not say"),
        (
            lambda: series(VOLUME, ImageOrientationPatient=[0.8, 0.6, 0, -0.6, 0.8, 0]),
            "oblique, by 37",
        ),
        (lambda: tilted(VOLUME), "oblique, by 37"),
        (lambda: [file(acquired(VOLUME))], "does not say"),
    ],
)
def test_slices_of_unknown_or_oblique_position_are_not_cut(
    contents: Callable[[], list[bytes]], why: str
) -> None:
    for plane in ("axial", "coronal"):
        with pytest.raises(ImageError, match=rf"volume\.plane is {plane}.*{why}") as caught:
            of_series(plane, contents())
        assert caught.value.reason is Reason.IMAGE_VOLUME
    assert stacked(of_series("acquired", contents())).shape == (7, 6, 5)


def test_an_image_of_one_frame_has_no_planes() -> None:
    whole = of_series("coronal", [file(VOLUME[:, :, 0])])
    np.testing.assert_array_equal(whole.frames[0], VOLUME[:, :, 0])
    one = nifti(VOLUME[:, :, :1], phantom_affine())
    np.testing.assert_array_equal(stacked(of_nifti("coronal", one)), acquired(VOLUME)[:1])
    two = nifti(VOLUME[:, :, 0])
    np.testing.assert_array_equal(of_nifti("axial", two).frames[0], VOLUME[:, :, 0].T)


def test_colours_are_cut_as_grey_is() -> None:
    frames = np.stack([colours((6, 5)) // (number + 1) for number in range(4)])
    contents = [
        file(frame, **geometry(VOLUME, "axial", number)) for number, frame in enumerate(frames)
    ]
    slices = stacked(of_series("coronal", contents))
    np.testing.assert_array_equal(slices, frames.transpose(1, 0, 2, 3)[:, ::-1])


def test_cut_slices_are_resized_like_any_image() -> None:
    wanted = volume_settings(plane="coronal", window=IDENTITY)
    resize = resize_settings(size=28)
    decoded = decode_files(series(VOLUME), resize, settings(), wanted, folder=True)
    assert (decoded.width, decoded.height, len(decoded.frames)) == (5, 7, 6)
    assert decoded.representative == 3
    bicubic = Image.Resampling.BICUBIC
    for index, pixels in enumerate(expected("coronal")):
        plain = Image.fromarray(pixels).convert("RGB").resize((28, 28), bicubic)
        assert decoded.frames[index].tobytes() == plain.tobytes()
    assert decoded.image.tobytes() == decoded.frames[3].tobytes()


def test_slices_that_are_lines_are_refused() -> None:
    with pytest.raises(ImageError, match="1 x 6, which are lines"):
        of_nifti("acquired", nifti(VOLUME[:1], phantom_affine()))
    assert stacked(of_nifti("sagittal", nifti(VOLUME[:1], phantom_affine()))).shape == (1, 7, 6)


def test_limits_hold_for_the_plane_that_is_cut() -> None:
    wide = np.random.default_rng(0).integers(0, 255, (70, 3, 4), dtype=np.uint8)
    with pytest.raises(ImageError, match=r"slices: 70, the limit is 64 \(dicom\.max_frames\)"):
        of_nifti("sagittal", nifti(wide, phantom_affine()))
    with pytest.raises(ImageError, match=r"slices: 70, the limit is 64 \(dicom\.max_frames\)"):
        of_series("sagittal", series(wide))
    wanted = volume_settings(plane="axial")
    with pytest.raises(ImageError, match=r"70 x 3, the limit is 209 \(resize\.max_megapixels\)"):
        read_nifti_stack(nifti(wide, phantom_affine()), settings(), wanted, 209)
