"""Numbers published by others, for Med-R1 and for models tested on the same questions."""

from __future__ import annotations

from typing import Final

from stages.scoring.published.entries import Published

_CONTAMINATED: Final = (
    "All 88,996 open-access questions; how many of them a model saw in training differs and is"
    " mostly not reported"
)
_LINGSHU: Final = "Lingshu report, Table 6"
_REPRODUCED: Final = (
    "Another group's run of the released checkpoint, not the authors'; on data it was not trained"
    " on"
)


def _omnimed(subject: str, value: float, source: str, caveat: str = _CONTAMINATED) -> Published:
    return Published(subject, "OmniMedVQA accuracy", value, "percent", source, caveat)


def _transfer(subject: str, source: str, **values: float) -> tuple[Published, ...]:
    return tuple(
        Published(
            subject, f"{name.replace('_', ' ')} accuracy", value, "percent", source, _REPRODUCED
        )
        for name, value in values.items()
    )


_MEDGR2: Final = (
    "MedGR2 (AAAI-26, arXiv 2508.20549), OmniMedVQA overall, as summarised by third parties"
)
_OPHVLM: Final = "OphVLM README, OmniMedVQA-Eye"
THIRD_PARTY: Final[tuple[Published, ...]] = (
    *(
        _omnimed(subject, value, _LINGSHU)
        for subject, value in {
            "MedVLM-R1-2B": 77.7,
            "MedGemma-4B": 69.8,
            "LLaVA-Med-7B": 44.3,
            "HuatuoGPT-V-7B": 74.2,
            "BioMediX2-8B": 63.3,
            "Qwen2.5-VL-7B": 63.6,
            "InternVL2.5-8B": 81.3,
            "InternVL3-8B": 79.1,
            "Lingshu-7B": 82.9,
            "HealthGPT-14B": 75.2,
            "HuatuoGPT-V-34B": 74.0,
            "MedDr-40B": 64.3,
            "InternVL3-14B": 78.9,
            "Qwen2.5-VL-32B": 68.2,
            "InternVL2.5-38B": 79.9,
            "InternVL3-38B": 79.8,
            "Lingshu-32B": 83.4,
            "BiomedGPT": 27.9,
            "GPT-4.1": 75.5,
            "Claude Sonnet 4": 65.5,
            "Gemini-2.5-Flash": 71.0,
        }.items()
    ),
    _omnimed(
        "Lingshu-7B with RLVR",
        81.3,
        "Lingshu report",
        f"{_CONTAMINATED}. Reinforcement learning lowered it, from 82.9",
    ),
    _omnimed("Lingshu-7B", 82.74, "an outside reproduction with MedEvalKit"),
    _omnimed("Med-R1-3B", 72.57, _MEDGR2),
    _omnimed("Qwen2.5-VL-72B", 67.71, _MEDGR2),
    _omnimed("HuatuoGPT-V-34B", 76.70, _MEDGR2),
    _omnimed("MedGR2 SFT (7B)", 85.59, _MEDGR2),
    _omnimed("MedGR2 SFT+GRPO (7B)", 87.45, _MEDGR2),
    _omnimed("GMAI-VL-7B", 88.48, "GMAI-VL README"),
    _omnimed("LLaVA-Med-7B", 44.5, "HuatuoGPT-Vision README"),
    _omnimed("LLaVA-v1.6-34B", 61.4, "HuatuoGPT-Vision README"),
    _omnimed("LLaVA-1.5-LLaMA3-8B", 48.8, "HuatuoGPT-Vision README"),
    _omnimed("LLaVA-1.5-LLaMA3-8B with PubMedVision", 75.1, "HuatuoGPT-Vision README"),
    _omnimed("HuatuoGPT-V-34B", 76.9, "HuatuoGPT-Vision README"),
    *(
        Published(
            subject, "OmniMedVQA eye questions accuracy", value, "percent", _OPHVLM, _CONTAMINATED
        )
        for subject, value in {
            "Med-R1-2B-Fundus": 69.11,
            "MedVLM-R1": 64.31,
            "Qwen2.5-VL-3B": 56.26,
            "Qwen2.5-VL-7B": 60.24,
            "InternVL3-2B": 64.07,
            "HuatuoGPT-V-7B": 73.66,
        }.items()
    ),
    *_transfer(
        "Med-R1-2B",
        _LINGSHU,
        **{
            "MMMU-Med": 34.8,
            "VQA-RAD": 39.0,
            "SLAKE": 54.5,
            "PathVQA": 15.3,
            "PMC-VQA": 47.4,
            "MedXpertQA-MM": 21.1,
        },
    ),
    *_transfer(
        "Med-R1-2B",
        "Lingshu report, Table 7 (text only)",
        **{
            "MMLU-Med": 51.5,
            "PubMedQA": 66.2,
            "MedMCQA": 39.1,
            "MedQA": 39.9,
            "Medbullets": 33.6,
            "MedXQA": 11.2,
            "SGPQA": 17.9,
        },
    ),
    *_transfer(
        "Med-R1-2B", "Med-RWR", **{"MedXpertQA-MM": 21.5, "MMMU-H&M": 42.7, "ECBench": 36.7}
    ),
    *_transfer(
        "Med-R1-2B",
        "Med-RWR",
        **{
            "MMMU-Pro-H&M, first of two settings,": 33.9,
            "MMMU-Pro-H&M, second of two settings,": 23.8,
        },
    ),
    *_transfer(
        "Med-R1-3B",
        "MedSynapse-V",
        **{
            "VQA-RAD": 53.2,
            "SLAKE": 52.8,
            "PathVQA": 44.1,
            "PMC-VQA": 38.5,
            "MMMU*": 30.4,
            "MedXpert": 18.5,
            "GMAI-MMBench": 35.2,
        },
    ),
)
"""Numbers published by others, for Med-R1 and for models tested on the same questions.

Lingshu reports no OmniMedVQA accuracy for Med-R1: "trained on part of the OmniMedVQA test set".
"""
