"""The errors of the service. `api/problems.py` alone turns them into HTTP.

An error whose code is a `FailureCode` can also end a job, when it is met while a worker fetches the model or the text.
"""

from collections.abc import Sequence

from modelpress.contract.codes import FailureCode
from modelpress.errors import ModelpressError, Refused


class SeveralRefused(Refused):
    """Several fields of the recipe are wrong. Each entry of errors names one and says what to send; nothing was
    enqueued."""

    code = "several_refused"
    title = "Several fields are refused"

    def __init__(self, faults: Sequence["Refused"]) -> None:
        super().__init__(faults[0].field, "; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        self.several = tuple(faults)

    @property
    def faults(self) -> Sequence["Refused"]:
        """Return a refusal of each wrong field."""
        return self.several


class UnknownModel(Refused):
    code = FailureCode.UNKNOWN_MODEL
    title = code.kind.title


class OutsideRoots(Refused):
    code = FailureCode.OUTSIDE_ROOTS
    title = code.kind.title


class NoSafetensors(Refused):
    code = FailureCode.NO_SAFETENSORS
    title = code.kind.title


class InvalidModel(Refused):
    code = FailureCode.INVALID_MODEL
    title = code.kind.title


class NoTokenizer(Refused):
    code = FailureCode.NO_TOKENIZER
    title = code.kind.title


class UnsupportedModel(Refused):
    code = FailureCode.UNSUPPORTED_ARCHITECTURE
    title = code.kind.title


class MethodDoesNotFit(Refused):
    code = FailureCode.METHOD_DOES_NOT_FIT
    title = code.kind.title


class RatioOutOfRange(Refused):
    code = FailureCode.RATIO_OUT_OF_RANGE
    title = code.kind.title


class UnknownDataset(Refused):
    code = FailureCode.UNKNOWN_DATASET
    title = code.kind.title


class KeyReused(Refused):
    """The Idempotency-Key was sent before with another recipe. A key stands for one request for 24 hours: repeat it
    with the same body, or send a new one."""

    code = "idempotency_key_reused"
    title = "The Idempotency-Key is that of another request"


class QueueFull(ModelpressError):
    """As many jobs wait as the operator allows. Nothing was enqueued: post the recipe again later."""

    code = "queue_full"
    title = "Too many jobs are waiting"


class HubUnavailable(ModelpressError):
    code = FailureCode.HUB_UNAVAILABLE
    title = code.kind.title


class DownloadCorrupted(ModelpressError):
    code = FailureCode.DOWNLOAD_CORRUPTED
    title = code.kind.title


class Unauthenticated(ModelpressError):
    """The service asks for a key, and the request has none that is valid. Send it as `Authorization: Bearer …`; someone
    with a key that has the scope admin makes new ones at POST /keys."""

    code = "unauthenticated"
    title = "A valid key is needed"


class MissingScope(ModelpressError):
    """The key is valid and does not allow this. The detail names the scope that is needed."""

    code = "missing_scope"
    title = "The key does not allow this"


class QuotaExceeded(ModelpressError):
    """The team has as much as the operator allows it. GET /team shows what it uses and may use."""

    code = "quota_exceeded"
    title = "The team has reached a limit"


class IdentityProviderUnavailable(ModelpressError):
    """The token is one of the OpenID provider, which does not answer at the moment. Nothing was done: send the request
    again later, or use a key."""

    code = "identity_provider_unavailable"
    title = "The OpenID provider does not answer"


class TooManyRequests(ModelpressError):
    """The team makes more requests than the operator allows in a minute. Nothing was done: send the request again when
    the header Retry-After says."""

    code = "too_many_requests"
    title = "Too many requests"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class KeyNotFound(ModelpressError):
    """The team has no key of this id. GET /keys lists those it has."""

    code = "key_not_found"
    title = "There is no such key"


class ForeignPage(ModelpressError):
    """A form or script of another site has asked for a change through the page, or for anything where no keys are asked
    for. Use the page itself; programs send their key to the API as `Authorization: Bearer …`. A service that asks for
    no keys answers requests to `localhost` alone: a proxy in front of it sends `Host: localhost`."""

    code = "foreign_page"
    title = "Another site has sent this"


class UploadNotFound(ModelpressError):
    """The team has no upload of this id. GET /uploads lists those it has."""

    code = "upload_not_found"
    title = "There is no such upload"


class WrongOffset(ModelpressError):
    """The next piece of the file begins elsewhere. The header Upload-Offset says where: go on from there."""

    code = "wrong_offset"
    title = "The piece does not follow upon what has arrived"

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class UploadBusy(ModelpressError):
    """Pieces of a file are sent one after the other. Wait until the other request has ended."""

    code = "upload_busy"
    title = "Another request is sending this file"


class UploadInUse(ModelpressError):
    """A job that has not ended names the upload. Delete it once the job has ended."""

    code = "upload_in_use"
    title = "A job needs the upload"


class UploadTooLarge(ModelpressError):
    """More bytes were sent than were announced. Announce the file again, with its right size."""

    code = "upload_too_large"
    title = "The file is larger than was announced"


class JobNotFound(ModelpressError):
    """The team has no job of this id. GET /jobs lists those that it has."""

    code = "job_not_found"
    title = "There is no such job"


class ArtifactNotFound(ModelpressError):
    """The job's result has no file of this name, or the job has ended without a result. GET /jobs/ID/artifacts lists
    the files there are."""

    code = "artifact_not_found"
    title = "There is no such artifact"


class NotFinished(ModelpressError):
    """The job has no result yet. The header Retry-After says when to look again."""

    code = "not_finished"
    title = "The job has not finished yet"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class JobEnded(ModelpressError):
    """The job has succeeded or failed, so it cannot be cancelled. GET /jobs/ID tells which."""

    code = "job_ended"
    title = "The job has already ended"


class CannotRetry(ModelpressError):
    """Only a job that has failed or was cancelled can be retried. Post the recipe again for another result."""

    code = "cannot_retry"
    title = "The job cannot be retried"


class NotEnded(ModelpressError):
    """Only a job that has ended can be deleted. Cancel it first."""

    code = "not_ended"
    title = "The job has not ended"


class WorkerNotFound(ModelpressError):
    """There is no worker of this id. GET /workers lists those there are."""

    code = "worker_not_found"
    title = "There is no such worker"


class WebhookNotFound(ModelpressError):
    """The team has no webhook of this id. GET /webhooks lists those it has."""

    code = "webhook_not_found"
    title = "There is no such webhook"


class DeliveryNotFound(ModelpressError):
    """Nothing of this id was sent to the webhook. GET /webhooks/ID/deliveries lists what was."""

    code = "delivery_not_found"
    title = "There is no such delivery"


class DatabaseUnavailable(ModelpressError):
    """The service cannot reach its database at the moment. Nothing is lost: wait as long as the header Retry-After
    says, then look at GET /jobs before you post a job again, since it may have been accepted."""

    code = "database_unavailable"
    title = "The database does not answer"


class TooManyModelsRead(ModelpressError):
    """The service reads the files of as many other models as it can at once. Nothing was posted: post the job again
    when the header Retry-After says."""

    code = "too_many_models_read"
    title = "Other models are being read"


class StorageUnavailable(ModelpressError, OSError):
    """The store of finished files cannot be used at the moment. Nothing is lost: wait as long as the header Retry-After
    says, then ask again. A job whose result is ready waits for the store."""

    code = "storage_unavailable"
    title = "The storage does not answer"


class UnknownStorage(ModelpressError):
    """The operator's MODELPRESS_STORAGE_URL names no storage backend."""

    code = "unknown_storage"
    title = "The storage is not known"


class UnknownSetting(ModelpressError):
    """The environment has a variable that looks like a setting and is none."""

    code = "unknown_setting"
    title = "There is no such setting"


class IncompleteSettings(ModelpressError):
    """A process that serves was started without the URL of a database or a broker."""

    code = "incomplete_settings"
    title = "The settings are incomplete"


class ForeignDataDirectory(ModelpressError):
    """The files in the data directory or the storage belong to another database."""

    code = "foreign_data_directory"
    title = "The data directory belongs to another database"


class NotMigrated(ModelpressError):
    """The database lacks migrations that this version needs. `modelpress migrate` applies them."""

    code = "not_migrated"
    title = "The database is not up to date"
