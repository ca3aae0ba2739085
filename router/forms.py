"""Pure: the field `model` of a form (multipart/form-data), as audio routes take it.

Who may use which model hangs on it, so a form that two readers could read in two ways names none: a field
given twice, a name in the extended notation, a folded or repeated header.
"""

import re
from collections.abc import Iterator

TYPE = re.compile(rb"""(?i)multipart/form-data\s*;\s*boundary=("?)([\w'()+,./:=?-]{1,70})\1""")
DISPOSITION = re.compile(rb"(?i)content-disposition:[ \t]*form-data[ \t]*;([^\r\n]*)")
NAME = re.compile(rb"""(?i)(?<![\w*-])name[ \t]*(\*?)[ \t]*=[ \t]*(?:"([^"\\]*)"|([^\s;"]+))""")
MAX_HEAD = 4096  # bytes of the headers of one part
MAX_VALUE = 256


def model_of(body: bytes | bytearray, content_type: bytes) -> str:
    """ "" where it is not given, or not surely."""
    kind = TYPE.fullmatch(content_type.strip())
    if kind is None:
        return ""
    found: list[bytes] = []
    for head, start, end in _parts(body, b"--" + kind[2]):
        name = _name(head)
        if name is None:
            return ""
        if name == b"model":
            found.append(bytes(body[start : min(end, start + MAX_VALUE + 1)]))
    if len(found) != 1 or len(found[0]) > MAX_VALUE:
        return ""
    return found[0].decode("utf-8", "replace")


def _parts(body: bytes | bytearray, mark: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Headers of each part, and where its content lies."""
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark)
    while at >= 0:
        line_end = body.find(b"\r\n", at + 2)
        head_end = body.find(b"\r\n\r\n", at + 2, at + MAX_HEAD)
        end = body.find(b"\r\n" + mark, at + 2)
        if line_end < 0 or end < 0:
            return
        if head_end < 0 or head_end > end:
            yield b"", 0, 0  # no headers, or too many: nobody can say what it is
        else:
            yield bytes(body[line_end : head_end + 2]), head_end + 4, end
        at = end


def _name(head: bytes) -> bytes | None:
    """The name of a part with these header lines; None: there is none, or more than one."""
    dispositions = DISPOSITION.findall(head)
    folded = b"\r\n " in head or b"\r\n\t" in head
    if len(dispositions) != 1 or head.lower().count(b"content-disposition") != 1 or folded:
        return None
    names = NAME.findall(dispositions[0])
    if len(names) != 1 or names[0][0]:
        return None
    return names[0][1] or names[0][2] or None
