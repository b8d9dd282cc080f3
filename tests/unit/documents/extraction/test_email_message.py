"""Text of e-mail messages."""

from __future__ import annotations

from email.message import EmailMessage

from tests.unit.documents.extraction.helpers import extract, extract_text, fail


def make_message() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = (
        "Ann <ann@example.org>",
        "Bob <bob@example.org>",
        "Größe der Kiste",
    )
    message["Date"] = "Mon, 02 Mar 2026 10:00:00 +0100"
    message.set_content("Hello Bob,\n\n3 m².\n")
    message.add_alternative("<p>Hello <b>Bob</b></p>", subtype="html")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="plan.pdf")
    return message


def test_message_has_headers_plain_text_and_names_of_attachments() -> None:
    document = extract(bytes(make_message()), "a.eml")
    assert document.title == "Größe der Kiste"
    assert document.sections[0].text == (
        "# Größe der Kiste\n\nFrom: Ann <ann@example.org>\nTo: Bob <bob@example.org>\n"
        "Date: Mon, 02 Mar 2026 10:00:00 +0100\n\n"
        "Hello Bob,\n\n3 m².\n\nAttachments (not read): plan.pdf (application/pdf)"
    )


def test_message_without_plain_text_has_text_of_its_html() -> None:
    message = EmailMessage()
    message["Subject"] = "x"
    message.set_content("<h2>Offer</h2><p>1 €", subtype="html")
    assert extract_text(bytes(message), "a.eml") == "# x\n\n## Offer\n\n1 €"
    assert "none of the headers" in fail(b"just text", "a.eml")


def test_message_with_few_headers_is_read() -> None:
    text = extract_text(
        b"Received: by mx.example.org\nDate: Mon, 02 Mar 2026 10:00:00 +0100\n\nThe code is 42.", "a.eml"
    )
    assert text == "Date: Mon, 02 Mar 2026 10:00:00 +0100\n\nThe code is 42."


def test_attached_message_is_read_with_its_own_attachments() -> None:
    message = EmailMessage()
    message["From"], message["Subject"] = "Eve <eve@example.org>", "Fwd"
    message.set_content("See below.")
    message.add_attachment(make_message())
    document = extract(bytes(message), "a.eml")
    assert document.sections[0].text == (
        "# Fwd\n\nFrom: Eve <eve@example.org>\n\nSee below.\n\n## Attached message: Größe der Kiste\n\n"
        "From: Ann <ann@example.org>\nTo: Bob <bob@example.org>\nDate: Mon, 02 Mar 2026 10:00:00 +0100\n\n"
        "Hello Bob,\n\n3 m².\n\nAttachments (not read): plan.pdf (application/pdf)"
    )


def test_undeclared_encoding_of_one_text_does_not_hide_the_message() -> None:
    data = b"Subject: News\n\n" + "公司去年的收入是四百万元".encode("gbk")
    document = extract(data, "a.eml")
    assert document.sections[0].text == "# News"
    assert "Save it as UTF-8." in document.notice
