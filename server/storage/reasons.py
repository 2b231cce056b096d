"""Why the store of finished images fails, in words that may be shown to callers, and what the operator can do.

The text of the library's errors may hold an access key: only its codes are read.
"""

import re

LOST_FOLDER = "has lost its folder"
_S3_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"\bstatus:? (?:code:? )?([45]\d\d)\b", re.IGNORECASE)
#: Code of an error of S3, and how a sentence that begins with "The store of finished images" ends.
_S3_REASONS = {
    "NoSuchBucket": "has no such bucket",
    "InvalidAccessKeyId": "refuses the credentials",
    "SignatureDoesNotMatch": "refuses the credentials",
    "ExpiredToken": "refuses the credentials, which have expired",
    "AccessDenied": "denies access",
}
REMEDIES = {
    "has no such bucket": "Create the bucket, or correct FLUID_RESULTS.",
    "refuses the credentials": "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "refuses the credentials, which have expired": "Renew the AWS_* credentials and restart.",
    "denies access": "Allow reading, writing, listing and deleting in the folder or bucket of FLUID_RESULTS.",
    LOST_FOLDER: "Create or mount the folder of FLUID_RESULTS; to use a new one in its place, restart.",
    "is full": "Free some space on the disk of FLUID_RESULTS.",
}


def remedy(reason: str) -> str:
    """Return what the operator can do about the `reason` of a StorageUnavailable."""
    return REMEDIES.get(reason, "Start it, or correct FLUID_RESULTS and AWS_ENDPOINT_URL.")


def reason_of(error: Exception, *, in_folder: bool, timeout_s: float) -> str:
    """How a sentence that begins with "The store of finished images" ends, without a word of the error's own text."""
    if isinstance(error, TimeoutError):
        return f"does not answer within {timeout_s:g} s"
    text = str(error)
    if in_folder:
        if "os error 28" in text or "os error 122" in text:  # no space left; quota used up
            return "is full"
        denied = isinstance(error, PermissionError) or "os error 13" in text or "os error 30" in text
        return "denies access" if denied else "fails"
    if code := _S3_CODE.search(text):
        return _S3_REASONS.get(code[1], f"answers {code[1]}")
    if isinstance(error, PermissionError):
        return "denies access"
    if status := _STATUS.search(text):
        return f"answers with status {status[1]}"
    return "does not answer"
