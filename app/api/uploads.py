"""Text that a team brings along: announced, sent in pieces that can be resumed, named in recipes by its id."""

from contextlib import ExitStack, suppress
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response, status
from starlette.requests import ClientDisconnect

from app.api.addresses import address
from app.api.deps import ReadingUploads, SubmittingUploads
from app.api.documentation import Responses, headers, refusals
from app.errors import UploadNotFound
from modelpress.contract.upload import UPLOAD, Upload, UploadList, UploadRequest

router = APIRouter(tags=["uploads"])

PIECE = "application/octet-stream"
OFFSET = "Upload-Offset"
RECEIVED: Responses = {200: {"headers": headers(OFFSET)}}
BEGUN: Responses = {
    200: {
        "model": Upload,
        "description": "The team has announced this text before; `received` tells how much of it has arrived",
        "headers": headers("Location", OFFSET),
    },
    201: {"headers": headers("Location", OFFSET)},
}
BODY = {"requestBody": {"required": True, "content": {PIECE: {"schema": {"type": "string", "format": "binary"}}}}}

UploadId = Annotated[str, Path(examples=["upload_5f0c8a2e9b1d4c7f60a3e812"])]
Offset = Annotated[
    int, Header(alias=OFFSET, ge=0, lt=2**63, description="where the piece begins: `received` of the upload")
]


def known(upload_id: str) -> str:
    """Return the id; raise without a look-up where it cannot be one: the database refuses a NUL."""
    if UPLOAD.fullmatch(upload_id):
        return upload_id
    raise UploadNotFound("no upload has this id")


def with_offset(response: Response, upload: Upload) -> Upload:
    """Tell in a header, too, how much has arrived."""
    response.headers[OFFSET] = str(upload.received)
    return upload


@router.post(
    "/uploads",
    status_code=status.HTTP_201_CREATED,
    operation_id="begin_upload",
    responses=BEGUN | refusals(400, 401, 403, 413, 415, 422),
)
def begin_upload(body: UploadRequest, uploads: SubmittingUploads, request: Request, response: Response) -> Upload:
    """Announce a file of text. Send it to the address in `Location`, piece by piece."""
    upload, is_new = uploads.begin(body)
    if not is_new:
        response.status_code = status.HTTP_200_OK
    response.headers["Location"] = address(request, f"/uploads/{upload.id}")
    return with_offset(response, upload)


@router.patch(
    "/uploads/{upload_id}",
    operation_id="append_to_upload",
    responses=RECEIVED | refusals(401, 403, 404, 408, 409, 413, 422, 503),
    openapi_extra=BODY,
)
async def append_to_upload(
    upload_id: UploadId, uploads: SubmittingUploads, request: Request, response: Response, offset: Offset
) -> Upload:
    """Send the next piece. What has arrived when the connection breaks is kept; go on at `received`.

    Where all has arrived and `completed_at` is null, an empty piece at the end has the file checked and kept.
    """
    with ExitStack() as stack:
        part = await to_thread.run_sync(lambda: stack.enter_context(uploads.part(known(upload_id), offset)))
        with suppress(ClientDisconnect):
            async for data in request.stream():
                await to_thread.run_sync(part.append, data)
        # Still locked: a client that has lost patience, and asks once more, must not check the file meanwhile.
        return with_offset(response, await to_thread.run_sync(uploads.conclude, upload_id))


@router.get("/uploads", operation_id="list_uploads", responses=refusals(401, 403, 422))
def list_uploads(
    uploads: ReadingUploads,
    after: Annotated[str | None, Query(max_length=256, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> UploadList:
    """List the files of the team, newest first, including those that have not arrived as a whole."""
    return uploads.page(after, limit)


@router.get(
    "/uploads/{upload_id}",
    operation_id="get_upload",
    responses=RECEIVED | refusals(401, 403, 404),
)
def get_upload(upload_id: UploadId, uploads: ReadingUploads, response: Response) -> Upload:
    """Tell how much of a file has arrived."""
    return with_offset(response, uploads.get(known(upload_id)))


@router.delete(
    "/uploads/{upload_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    operation_id="delete_upload",
    responses=refusals(401, 403, 404, 409),
)
def delete_upload(upload_id: UploadId, uploads: SubmittingUploads) -> None:
    """Delete a file, if no job that has not ended names it."""
    uploads.delete(known(upload_id))
