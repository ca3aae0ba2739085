"""Which model a form asks for: a form that could be read in two ways names none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.forms import model_of

TYPE = b"multipart/form-data; boundary=xyz"
FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'
MODEL = b'Content-Disposition: form-data; name="model"'


def form(*parts: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"--xyz\r\n%b\r\n\r\n%b\r\n" % part for part in parts) + b"--xyz--\r\n"


@pytest.mark.parametrize(
    "head",
    [
        MODEL,
        b"content-disposition: form-data; name=model",
        b'Content-Disposition: form-data; Name="model"\r\nContent-Type: text/plain',
        b"Content-Type: text/plain; charset=utf-8\r\n" + MODEL,
    ],
)
def test_the_field_is_found_however_it_is_written(head: bytes) -> None:
    assert model_of(form((FILE, b"\0\xff" * 5000), (head, b"whisper")), TYPE) == "whisper"
    assert model_of(form((head, b"whisper"), (FILE, b"RIFF\r\n\r\n")), TYPE) == "whisper"
    assert model_of(form((head, b"whisper")), b'Multipart/Form-Data; boundary="xyz"') == "whisper"


@pytest.mark.parametrize(
    "body",
    [
        form((FILE, b"x")),
        form((MODEL, b"mine"), (MODEL, b"other")),
        form((MODEL, b"mine"), (b"Content-Disposition: form-data; name*=utf-8''model", b"other")),
        form((MODEL, b"mine"), (b'Content-Disposition: form-data; x="1"; name="mo\\del"', b"other")),
        form((MODEL, b"mine"), (MODEL + b'; name="file"', b"other")),
        form((MODEL, b"mine"), (FILE + b"\r\n" + MODEL, b"other")),
        form((MODEL, b"mine"), (b'Content-Disposition: form-data;\r\n name="model"', b"other")),
        form((MODEL, b"mine"), (b"X: y", b"other")),
        form((MODEL, b"mine"), (b"X: " + b"y" * 5000 + b"\r\n" + MODEL, b"other")),
        form((MODEL, b"m" * 257)),
        form((MODEL, b"mine")).replace(b"xyz", b"abc"),
        form((MODEL, b"mine")).replace(b"\r\n", b"\n"),
        b"",
    ],
)
def test_a_form_that_two_readers_could_read_in_two_ways_names_no_model(body: bytes) -> None:
    assert model_of(body, TYPE) == ""


def test_what_a_file_holds_is_no_field() -> None:
    decoy = b'name="model"\r\n\r\nmine\r\n' + b"\r\n-- xyz\r\n" + MODEL + b"\r\n\r\nmine"
    assert model_of(form((FILE, decoy), (MODEL, b"other")), TYPE) == "other"


@pytest.mark.parametrize(
    "kind", [b"multipart/form-data", b"multipart/mixed; boundary=xyz", TYPE + b"; boundary=abc"]
)
def test_a_form_of_an_unclear_kind_names_no_model(kind: bytes) -> None:
    assert model_of(form((MODEL, b"mine")), kind) == ""


@given(
    st.lists(
        st.sampled_from([b"--xyz", b"--", b"\r\n", b"\r\n\r\n", MODEL, FILE, b"mine", b'"', b";"]),
        max_size=30,
    )
)
def test_any_bytes_are_read_without_an_error(pieces: list[bytes]) -> None:
    assert isinstance(model_of(b"".join(pieces), TYPE), str)
