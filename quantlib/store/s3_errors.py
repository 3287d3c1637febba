"""What an error of the S3 client means, in a line that names the bucket and the cause."""

from __future__ import annotations

from botocore import exceptions
from botocore.parsers import ResponseParserError

_CAUSES = {
    "NoSuchBucket": "there is no such bucket; create it, or correct the address",
    "AccessDenied": "these credentials have no permission for {operation}; "
    "give them a policy that allows it",
    "AllAccessDisabled": "access to the bucket is disabled",
    "ExpiredToken": "the credentials have expired; renew them and run again",
    "ExpiredTokenException": "the credentials have expired; renew them and run again",
    "TokenRefreshRequired": "the credentials have expired; renew them and run again",
    "InvalidToken": "the session token is not valid; renew AWS_SESSION_TOKEN",
    "InvalidAccessKeyId": "the server does not know the access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; "
    "check AWS_SECRET_ACCESS_KEY",
    "RequestTimeTooSkewed": "the clocks of this machine and the server differ too much; "
    "set this machine's clock",
    "RequestExpired": "the clocks of this machine and the server differ too much; "
    "set this machine's clock",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region; set AWS_REGION",
    "InvalidBucketName": "is no valid name of a bucket",
    "BadDigest": "the bytes were damaged on the way: their checksum is another",
    "EntityTooLarge": "the server takes no file of this size",
    "QuotaExceeded": "the bucket's quota is used up",
    "XMinioStorageFull": "the server has no room left",
    "SlowDown": "the server is overloaded and did not recover in time; run again",
    "ServiceUnavailable": "the server is overloaded and did not recover in time; run again",
    "503": "the server is overloaded and did not recover in time; run again",
}
_NO_CREDENTIALS = (
    "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, mount a "
    "credentials file, or give the pod or machine a role"
)
MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
"""Codes of an answer that there is no such file."""


def code_of(error: exceptions.ClientError) -> str:
    """The server's error code: ``NoSuchKey``."""
    return str(error.response.get("Error", {}).get("Code", ""))


def explain(error: Exception, endpoint: str) -> str:
    """What is wrong, and what to do about it; no credential is ever part of it.

    Args:
        error: What the client raised.
        endpoint: Where the server is.
    """
    match error:
        case exceptions.ClientError():
            code = code_of(error)
            if code in MISSING:
                return "there is no such file"
            cause = _CAUSES.get("AccessDenied" if code in ("403", "Forbidden") else code)
            if cause is not None:
                return cause.format(operation=error.operation_name)
            message = str(error.response.get("Error", {}).get("Message", ""))
            return f"{endpoint} refused {error.operation_name}: {code} {message}".rstrip()
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return _NO_CREDENTIALS
        case exceptions.CredentialRetrievalError() | exceptions.TokenRetrievalError():
            return f"the credentials could not be had: {type(error).__name__}"
        case exceptions.HTTPClientError() | exceptions.ConnectionError():
            return f"{endpoint} cannot be reached ({type(error).__name__}); check the endpoint"
        case ResponseParserError():
            return f"{endpoint} does not answer as an S3 server; check the endpoint"
        case _:
            return f"{type(error).__name__}: {error}"
