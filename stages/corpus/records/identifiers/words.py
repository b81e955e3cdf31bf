"""Words that decide whether a capitalised word is a name: given names, eponyms, clinical words."""

from __future__ import annotations

import re
from typing import Final

# fmt: off
GIVEN_NAMES: Final = frozenset((
    "Aaron", "Abdul", "Abigail", "Adam", "Adrian", "Ahmad", "Ahmed", "Aisha", "Alan", "Albert",
    "Alejandro", "Alex", "Ali", "Alison", "Amanda", "Amelia", "Amy", "Ana", "Andrea", "Andrew",
    "Angela", "Anita", "Anna", "Anne", "Anthony", "Antonio", "Ashley", "Barbara", "Benjamin",
    "Beth", "Betty", "Beverly", "Brandon", "Brenda", "Brian", "Caroline", "Catherine", "Charles",
    "Cheryl", "Chloe", "Christina", "Christine", "Christopher", "Claire", "Cynthia", "Daniel",
    "David", "Deborah", "Debra", "Denise", "Diana", "Diane", "Diego", "Donald", "Donna", "Doris",
    "Dorothy", "Edward", "Elena", "Elizabeth", "Ella", "Emily", "Emma", "Eric", "Ethan", "Eva",
    "Evelyn", "Fatima", "Fernando", "Frances", "Francisco", "Gary", "George", "Gloria", "Gregory",
    "Hannah", "Hans", "Hassan", "Helen", "Hussein", "Ian", "Ibrahim", "Igor", "Isabella", "Ivan",
    "Jacob", "Jacqueline", "James", "Jane", "Janet", "Janice", "Jason", "Javier", "Jeffrey",
    "Jennifer", "Jeremy", "Jessica", "Joan", "Joanna", "Joe", "John", "Jonathan", "Jorge", "Jose",
    "Joseph", "Joshua", "Juan", "Judith", "Judy", "Julia", "Julie", "Karen", "Katherine",
    "Kathleen", "Keith", "Kenneth", "Kevin", "Khalid", "Kimberly", "Klaus", "Larry", "Laura",
    "Lauren", "Leila", "Liam", "Linda", "Lisa", "Lucas", "Lucy", "Luis", "Margaret", "Maria",
    "Marie", "Marilyn", "Martha", "Mary", "Matthew", "Megan", "Mehmet", "Melissa", "Michael",
    "Michelle", "Mike", "Miguel", "Mohamed", "Mohammad", "Mohammed", "Muhammad", "Nancy", "Natalie",
    "Nathan", "Nicholas", "Nicole", "Noah", "Nora", "Olga", "Olivia", "Omar", "Pamela", "Patricia",
    "Paul", "Pedro", "Peter", "Philip", "Priya", "Rachel", "Rahul", "Rajesh", "Ralph", "Rebecca",
    "Ricardo", "Richard", "Robert", "Roger", "Ronald", "Roy", "Ruth", "Ryan", "Samantha", "Samuel",
    "Sandra", "Sanjay", "Sara", "Sarah", "Sean", "Sergei", "Sharon", "Shirley", "Sofia", "Sophia",
    "Sophie", "Stephanie", "Stephen", "Steven", "Sunita", "Susan", "Svetlana", "Teresa", "Theresa",
    "Timothy", "Tyler", "Walter", "Wendy", "Yusuf", "Zachary",
))
"""Frequent ones that are neither words nor, alone, names of signs and diseases, as Thomas is."""

EPONYMS: Final = frozenset((
    ("austin", "flint"), ("charles", "bonnet"), ("mary", "joseph"), ("robert", "jones"),
    ("george", "winter"), ("john", "cunningham"), ("peter", "pan"), ("paul", "bunnell"),
    ("adam", "stokes"), ("james", "ring"), ("joseph", "nodule"), ("adam", "apple"),
    ("john", "thomas"), ("marie", "tooth"), ("marie", "charcot"), ("pierre", "robin"),
    ("marie", "curie"), ("mary", "jane"), ("alex", "stewart"),
))
"""Given name and what follows it in the name of a sign, a disease or a virus."""

IMAGING: Final = frozenset((
    "abdomen", "ankle", "angiogram", "angiography", "arthrogram", "arthrography", "brain", "breast",
    "cardiac", "cholangiography", "conditional", "contrast", "elastography", "enterography",
    "examination", "features", "findings", "guided", "head", "hip", "image", "images", "imaging",
    "knee", "liver", "lumbar", "mammography", "neck", "neurography", "orbit", "pelvis", "perfusion",
    "prostate", "safe", "scan", "scans", "sequence", "sequences", "shoulder", "signal",
    "spectroscopy", "spine", "study", "urography", "venography", "wrist",
))
"""Words behind "Mr" that make it magnetic resonance."""

_NO_NAMES: Final = frozenset((
    # sentences about patients
    "a", "about", "active", "acute", "admitted", "after", "age", "aged", "ago", "all", "alone",
    "also", "an", "and", "any", "are", "arrived", "as", "at", "awake", "back", "bad", "because",
    "been", "before", "below", "both", "brought", "but", "by", "came", "can", "case", "chronic",
    "claims", "comes", "complains", "complaint", "consent", "consented", "currently", "data",
    "date", "denied", "denies", "details", "did", "died", "does", "due", "during", "elderly",
    "examination", "fell", "felt", "female", "fever", "first", "for", "found", "from", "gender",
    "general", "given", "good", "had", "has", "have", "having", "he", "health", "healthy", "her",
    "his", "history", "if", "in", "information", "initial", "is", "it", "known", "last", "left",
    "likely", "lost", "low", "made", "male", "may", "must", "needs", "new", "no", "non", "normal",
    "not", "notes", "noted", "now", "number", "of", "old", "on", "only", "or", "over", "past",
    "poor", "possible", "post", "prior", "private", "previous", "question", "recent", "recently",
    "related", "report", "reports", "right", "rule", "safety", "says", "self", "serious", "sex",
    "she", "short", "since", "so", "some", "states", "status", "still", "stable", "such", "sudden",
    "the", "their", "then", "there", "they", "this", "to", "today", "took", "total", "under",
    "unknown", "until", "very", "via", "was", "wants", "we", "were", "when", "where", "which",
    "while", "who", "will", "with", "without", "worse", "year", "years",
    # groups
    "adult", "african", "american", "asian", "black", "caucasian", "chinese", "european",
    "hispanic", "indian", "japanese", "latino", "white",
    # who is no single person
    "care", "center", "centre", "clinic", "clinician", "college", "committee", "consultant",
    "department", "doctor", "emergency", "family", "gp", "group", "hospital", "infirmary",
    "institute", "medical", "medicine", "national", "nurse", "outside", "physician", "practice",
    "practitioner", "primary", "radiologist", "resident", "service", "services", "society",
    "specialist", "staff", "surgeon", "surgery", "team", "university", "unit", "ward",
    # anatomy
    "abdomen", "abdominal", "ankle", "aorta", "aortic", "arm", "artery", "bladder", "bone", "bowel",
    "brain", "breast", "bronchial", "cardiac", "cervical", "chest", "colon", "cornea", "cranial",
    "ear", "elbow", "eye", "facial", "femoral", "femur", "fetal", "finger", "foot", "forearm",
    "fundus", "gastric", "genital", "hand", "head", "heart", "hepatic", "hip", "humerus", "iliac",
    "jaw", "joint", "kidney", "knee", "leg", "liver", "lower", "lumbar", "lung", "lymph", "macula",
    "macular", "mouth", "nasal", "neck", "nerve", "node", "nodes", "nose", "optic", "oral", "orbit",
    "ovarian", "pancreas", "pelvic", "pelvis", "pleural", "prostate", "pulmonary", "rectal",
    "renal", "retina", "retinal", "rib", "scalp", "shoulder", "sinus", "skin", "skull", "spinal",
    "spine", "spleen", "stomach", "temporal", "testicular", "thoracic", "thyroid", "tibia", "toe",
    "tongue", "trunk", "upper", "uterine", "uterus", "vaginal", "vein", "venous", "wrist",
    # findings, tests and treatment
    "abnormal", "allergic", "allergy", "angle", "apgar", "arrest", "asthma", "attack", "benign",
    "biopsy", "blood", "body", "born", "bound", "bypass", "cancer", "cell", "cells", "chemo",
    "class", "classification", "clinical", "contrast", "control", "cough", "covid", "criteria",
    "cyst", "cystic", "dead", "death", "deficit", "diabetes", "diabetic", "diffuse", "disease",
    "disorder", "distress", "dose", "drug", "elevated", "epilepsy", "exam", "excision", "exposure",
    "failure", "film", "films", "flap", "fracture", "free", "grade", "graft", "heavy", "hernia",
    "high", "image", "implant", "index", "infarct", "infection", "injury", "insulin", "intake",
    "invasive", "lesion", "lesions", "level", "light", "line", "loss", "lupus", "malignant", "mass",
    "mild", "mode", "moderate", "mole", "month", "months", "motion", "multiple", "negative",
    "nevus", "nodule", "obese", "onset", "pain", "palpable", "panel", "patch", "phase", "plaque",
    "plan", "positive", "pregnancy", "pregnant", "preterm", "pressure", "procedure", "progressive",
    "protocol", "rash", "rate", "ratio", "reflux", "region", "response", "result", "results",
    "risk", "scale", "scan", "scar", "scheme", "score", "screen", "seizure", "sepsis", "series",
    "severe", "shock", "sign", "signs", "site", "size", "smear", "smoker", "social", "solid",
    "stage", "stain", "stroke", "study", "swab", "sweat", "symptoms", "syndrome", "system", "term",
    "test", "thickness", "transplant", "trauma", "treatment", "trial", "tumor", "tumour", "type",
    "ulcer", "undergoing", "use", "version", "view", "views", "viral", "visit", "vital", "weight",
    "wheelchair", "wound", "xray",
))
_CLINICAL_END: Final = re.compile(
    r"(?:ology|ologist|itis|oma|omas|osis|oses|otomy|ostomy|ectomy|ography|ographic|ogram|oscopy"
    r"|emia|aemia|pathy|plasty|plegia|algia|trophy|uria|rrhea|rrhoea|genic|genous|ical|tion|sion"
    r"|[a-z]{5}ed|[a-z]{5}ing|ment|ness|ance|ated|ised|ized|rics|tric|dics|gery|ular|iac|ative|itive)\Z"
)
# fmt: on


def may_be_name(word: str) -> bool:
    """Whether a word behind one such as "patient" is more likely a name than anything else."""
    plain = word.casefold()
    if len(plain) == 1 or plain.capitalize() in GIVEN_NAMES:  # an initial is one
        return True
    return plain not in _NO_NAMES and _CLINICAL_END.search(plain) is None
