"""Groups are the connected components of linked images, in whatever order the images come."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.params import load_params
from stages.corpus.images.hashes import BITS
from stages.corpus.splitting import groups as module
from stages.corpus.splitting.groups import GroupedImage, group_images, patient_of

PATTERNS = [re.compile(pattern) for pattern in load_params().splits.patient_patterns]


def hash_of(*bits: int) -> str:
    return f"{sum(1 << bit for bit in set(bits)):0{BITS // 4}x}"


def image(
    image: str, pixels: str = "", bits: tuple[int, ...] = (), patient: str | None = None
) -> GroupedImage:
    return GroupedImage(
        image, pixels or image, hash_of(*bits), ("Set", patient) if patient else None
    )


def test_copies_of_copies_and_other_images_of_their_patients_are_one_group() -> None:
    images = [
        image("d", bits=(101,), patient="p"),
        image("b", pixels="same", bits=(1, 2, 3)),
        image("c", bits=(1, 2, 3, 4, 5), patient="p"),
        image("a", pixels="same", bits=tuple(range(50, 90))),
        image("e", bits=tuple(range(150, 190))),
    ]
    assert group_images(images, 2) == {"a": "a", "b": "a", "c": "a", "d": "a", "e": "e"}
    assert group_images(images, None) == {"a": "a", "b": "a", "c": "c", "d": "c", "e": "e"}


def test_the_threshold_is_a_number_of_bits() -> None:
    images = [image("a"), image("b", bits=tuple(range(10)))]
    assert len(set(group_images(images, 9).values())) == 2
    assert len(set(group_images(images, 10).values())) == 1


def test_no_images_have_no_groups() -> None:
    assert group_images([], 10) == {}


images_of_few_kinds = st.lists(
    st.builds(
        lambda pixels, bits, patient: (
            "",
            str(pixels),
            hash_of(*bits),
            ("Set", str(patient)) if patient else None,
        ),
        st.integers(0, 12),
        st.sets(st.integers(0, 12), max_size=4),
        st.integers(0, 6),
    ),
    max_size=25,
)


def components(images: list[GroupedImage], distance: int | None) -> dict[str, str]:
    """The same by brute force."""
    group = {each.image: each.image for each in images}

    def alike(a: GroupedImage, b: GroupedImage) -> bool:
        near = (
            distance is not None
            and (int(a.perceptual_hash, 16) ^ int(b.perceptual_hash, 16)).bit_count() <= distance
        )
        return (
            near
            or a.pixel_hash == b.pixel_hash
            or (a.patient is not None and a.patient == b.patient)
        )

    for _ in images:
        for a in images:
            for b in images:
                if alike(a, b):
                    group[a.image] = group[b.image] = min(group[a.image], group[b.image])
    return group


@settings(deadline=None, max_examples=60)
@given(images_of_few_kinds, st.sampled_from([None, 0, 1, 3]), st.randoms(use_true_random=False))
def test_groups_are_the_transitive_closure_whatever_the_order(
    rows: list[tuple[str, str, str, tuple[str, str] | None]], distance: int | None, random: object
) -> None:
    images = [GroupedImage(f"{index:02d}", *row[1:]) for index, row in enumerate(rows)]
    shuffled = images.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert group_images(shuffled, distance) == components(images, distance)


def test_many_links_are_joined_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LINKS", 3)
    bits = np.random.default_rng(0).permutation(BITS)[:40].tolist()
    images = [image(f"{index:02d}", bits=tuple(bits[:index])) for index in range(40)]
    assert set(group_images(images, 1).values()) == {"00"}


@pytest.mark.parametrize(
    ("path", "patient"),
    [
        (
            "Images/Mura/MURA-v1.1/valid/XR_ELBOW/patient11204/study1_negative/image2.png",
            "patient11204",
        ),
        ("Images/PAD-UFES-20/uncompresses_data/imgs_part_1/PAT_134_201_587.png", "PAT_134"),
        ("Images/CoronaHack/test/person126_bacteria_599.jpeg", "person126"),
        ("Images/CoronaHack/test/IM-0005-0001.jpeg", "IM-0005"),
        ("Images/OCT & X-Ray 2017/test/CNV/CNV-103044-8.jpeg", "103044"),
        ("Images/Diabetic Retinopathy/0/10175_left.jpeg", "10175"),
        ("Images/Knee Osteoarthritis/test/0/9009927L.png", "9009927"),
        ("Images/DeepDRiD/regular-fundus-test/389/389_l2.jpg", "389"),
        ("Images/Chest X-Ray PA/normal/00000662_003.png", "00000662"),
        (
            "Images/COVIDx CXR-4/test/MIDRC-RICORD-1C-419639-002895-42704-0.png",
            "MIDRC-RICORD-1C-419639-002895",
        ),
        ("Images/BreakHis/benign/SOB_B_A-14-22549AB-200-032.png", "14-22549AB"),
        (
            "Images/NLM- Malaria Data/Parasitized/C180P141NThinF_IMG_20151201_165528_cell_177.png",
            "C180P141",
        ),
        ("Images/OLIVES/train/Prime_FULL_Prime_FULL_02-046_W20_OD_fundus_OD_W20.tif", "02-046"),
        ("Images/OLIVES/train/TREX DME_GILA_0201GOD_V6_OS_fundus_OS_V6.tif", "0201"),
        ("Images/MAlig Lymph/CLL/sj-03-5521_005.tif", "sj-03-5521"),
        ("Images/RadImageNet/liver_lesion/abd069242.png", None),
        ("Images/ISIC2018/val/ISIC_0034323.jpg", None),
        ("Images/Retinal OCT-C8/test/NORMAL/normal_test_1339.jpg", None),
    ],
)
def test_the_default_patterns_find_the_patients_of_omnimedvqa(
    path: str, patient: str | None
) -> None:
    assert patient_of(path, PATTERNS) == (
        None if patient is None else (path.split("/")[1], patient)
    )


def test_patient_ids_are_unique_within_a_data_set_only() -> None:
    pattern = [re.compile(r"(\d+)_")]
    assert (
        patient_of("Images/A/7_1.png", pattern)
        == patient_of("Images/A/sub/7_2.png", pattern)
        == ("A", "7")
    )
    assert patient_of("Images/B/7_1.png", pattern) == ("B", "7")
    assert patient_of("Images/7_1.png", pattern) == ("", "7")
    assert patient_of("Images/A/x.png", pattern) is None
    assert patient_of("Images/A/x_.png", [re.compile(r"(\d*)_")]) is None
