"""PDF documents that are encrypted, with and without the package that AES needs."""

from __future__ import annotations

import importlib.util
import io

import pytest

from tests.document_files import make_pdf
from tests.unit.documents.extraction.helpers import extract_text, fail


def make_encrypted_pdf(entries: dict[str, int]) -> bytes:
    """Return a PDF document with an owner password; `entries` replace those of its encryption dictionary."""
    import pypdf
    from pypdf.generic import DictionaryObject, NameObject, NumberObject

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(make_pdf(["The Vasa sank."])))
    writer.encrypt("", "owner", algorithm="RC4-128")
    dictionary = writer._encrypt_entry
    assert dictionary is not None
    dictionary.update({NameObject(f"/{name}"): NumberObject(value) for name, value in entries.items()})
    method = NameObject("/AESV3" if entries.get("V") == 5 else "/AESV2")
    filters = DictionaryObject({NameObject("/StdCF"): DictionaryObject({NameObject("/CFM"): method})})
    dictionary.update({
        NameObject("/CF"): filters, NameObject("/StmF"): NameObject("/StdCF"), NameObject("/StrF"): NameObject("/StdCF")
    })  # fmt: skip
    if entries.get("V") == 5:
        from pypdf.generic import ByteStringObject

        dictionary.update({NameObject(f"/{name}"): ByteStringObject(bytes(48)) for name in ("O", "U")})
        dictionary.update({NameObject(f"/{name}"): ByteStringObject(bytes(32)) for name in ("OE", "UE")})
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


@pytest.mark.skipif(importlib.util.find_spec("cryptography") is not None, reason="AES is supported")
@pytest.mark.parametrize("entries", [{"V": 5, "R": 6, "Length": 256}, {"V": 4, "R": 4}])
def test_pdf_that_is_encrypted_with_aes_names_the_missing_package(entries: dict[str, int]) -> None:
    assert "pipx inject edgechat cryptography" in fail(make_encrypted_pdf(entries), "a.pdf")


def test_pdf_that_is_encrypted_without_aes_is_read_without_its_owner_password() -> None:
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(make_pdf(["The Vasa sank."])))
    writer.encrypt("", "owner", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    assert extract_text(file.getvalue(), "a.pdf") == "The Vasa sank."
