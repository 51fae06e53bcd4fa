"""Forms of browsers (`multipart/form-data`, RFC 7578): one file and fields, which say what query parameters say.

The parts are cut from the bytes that came: nothing goes to disk, and the name that a browser gives the file is not
even read.
"""

from email import message_from_bytes
from email.message import Message
from email.utils import collapse_rfc2231_value

from ..problems import ProblemError

MULTIPART = "multipart/form-data"
MAX_PARTS = 64
MAX_HEADER_BYTES = 4096
MAX_FIELD_BYTES = 4096


def read_form(content_type: str, body: bytes) -> tuple[str, bytes, dict[str, str]]:
    """Media type and content of the one file of a form, and the other parts as fields. An empty file is none.

    Raises ProblemError (400) for what is no form, for another number of files than one, and for too much.
    """
    boundary = _boundary(content_type)
    files: list[tuple[str, bytes]] = []
    fields: dict[str, str] = {}
    for header, content in _parts(body, boundary):
        name = header.get_param("name", header="content-disposition")
        if header.get_content_disposition() != "form-data" or name is None:
            raise _malformed("each part needs `Content-Disposition: form-data; name=...`")
        key = collapse_rfc2231_value(name)
        if header.get_filename() is not None or ("content-type" in header and not _is_text(header)):
            if header.get_filename() == "" and not content:
                continue  # a browser's field for files that was left empty
            files.append((header.get_content_type() if "content-type" in header else "", content))
            continue
        if len(content) > MAX_FIELD_BYTES:
            raise _malformed(f"the field {key[:80]!r} has {len(content)} bytes, at most {MAX_FIELD_BYTES}")
        if key in fields:
            raise _malformed(f"the field {key[:80]!r} comes twice")
        try:
            fields[key] = content.decode("utf-8")
        except UnicodeDecodeError:
            raise _malformed(f"the field {key[:80]!r} is not UTF-8") from None
    if len(files) != 1:
        raise _malformed(f"expected one part with a file, found {len(files)}")
    return *files[0], fields


def _parts(body: bytes, boundary: bytes) -> list[tuple[Message, bytes]]:
    """Header and content of each part."""
    # The first boundary may begin the body, and then no line ends before it.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, MAX_PARTS + 1)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise _malformed(f"the form does not end with its boundary, or has more than {MAX_PARTS} parts")
    found = []
    for piece in pieces[1:-1]:
        end_of_line = piece.find(b"\r\n", 0, 80)
        end_of_header = piece.find(b"\r\n\r\n", 0, MAX_HEADER_BYTES)
        if end_of_line < 0 or piece[:end_of_line].strip(b" \t") or end_of_header < 0:
            raise _malformed(f"a part has no header, or one of more than {MAX_HEADER_BYTES} bytes")
        header = message_from_bytes(piece[end_of_line + 2 : end_of_header + 2])
        found.append((header, piece[end_of_header + 4 :]))
    return found


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if not boundary or not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise _malformed("the Content-Type of a form must name its boundary, of 1 to 70 ASCII characters")
    return boundary.encode()


def _is_text(header: Message) -> bool:
    return header.get_content_maintype() == "text"


def _malformed(detail: str) -> ProblemError:
    return ProblemError("malformed-body", detail)
