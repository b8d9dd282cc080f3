"""Widgets around the open conversation, and the content of these widgets: title line, status line, input, footer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from textual.containers import Vertical

from edgechat.tui import textual_private
from edgechat.tui.composer import Composer
from edgechat.tui.widgets.footer import Footer
from edgechat.tui.widgets.prompt import PromptInput
from edgechat.tui.widgets.status_line import ChatStatus, StatusLine
from edgechat.tui.widgets.title_line import ChatTitle, TitleLine, describe_settings
from edgechat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.events import Key, MouseScrollDown, MouseScrollUp, Paste

    from edgechat.chat.session import Session
    from edgechat.config import Settings
    from edgechat.tui import messages as ui_messages
    from edgechat.tui.render.palette import Palette
    from edgechat.tui.session_worker import SessionWorker
    from edgechat.tui.widgets.composer_bar import ComposerBar, ComposerState
    from edgechat.tui.widgets.earlier_offer import EarlierOffer
    from edgechat.tui.widgets.footer import Severity

# Minimum height of the screen in rows for notices in the footer.
_MIN_NOTICE_ROWS: Final = 8
# Width of a centred conversation: 100 columns of text, bars at its left and a scrollbar.
_CENTERED_COLUMNS: Final = 104


class ConversationFrame(Vertical):
    """Lays out the widgets of the open conversation, and updates its title line and footer."""

    def __init__(
        self, worker: SessionWorker, get_palette: Callable[[], Palette],
        get_key_overrides: Callable[[], Mapping[str, str]], get_download_status: Callable[[], str], *, footer: bool,
    ) -> None:  # fmt: skip
        """`get_palette`, `get_key_overrides` and `get_download_status` return current values.

        If `footer` is true, the footer lists keys.
        """
        super().__init__()
        self.worker = worker
        self.get_palette = get_palette
        self._get_download_status = get_download_status
        self.transcript = Transcript(get_palette, self._send_to_prompt, id="transcript")
        self.title_line = TitleLine()
        self.status_line = StatusLine(self._read_status, self.show_frame)
        self.footer = Footer(self._read_focused_part, get_key_overrides, show_keys=footer)
        self.prompt = PromptInput(get_key_overrides, id="prompt")
        # The screen focuses the input at the start. Without this line, the styles of the input are computed twice.
        self.prompt.set_reactive(PromptInput.has_focus, True)
        self.composer = Composer(self.prompt, worker)
        self.composer_bar: ComposerBar | None = None
        """Rows of attachments and queued messages; None until there are any, because creating them takes time."""
        self.earlier_offer: EarlierOffer | None = None
        """Row that offers an earlier reply; None until there was one."""
        self.view: ui_messages.ConversationView | None = None
        """Snapshot of the open conversation; None until the session is created."""
        self.is_generating = False
        """True from when a reply is requested until it ends."""
        self.is_reasoning = False
        self.second_status = ""
        """Activity of a second model, which replies beside the model of the chat; "" if there is none."""
        self.n_pending = 1
        """Number of pending loads and replies; the chat starts with a pending load of the model."""
        self._is_centered = False

    def compose(self) -> ComposeResult:
        yield self.title_line
        yield self.transcript
        yield self.status_line
        yield self.prompt
        yield self.footer

    @property
    def is_busy(self) -> bool:
        """True while a load or a reply is pending."""
        return self.n_pending > 0

    @property
    def is_replying(self) -> bool:
        """True while Esc stops something: a reply of the model of the chat, or of a second model."""
        return self.is_generating or bool(self.second_status)

    def shows(self, conversation_id: str) -> bool:
        """Return whether the conversation with this ID is open."""
        return self.view is not None and self.view.conversation.id == conversation_id

    @property
    def _n_ctx(self) -> int | None:
        """Context length in tokens; None while no model is loaded."""
        session = self.worker.session
        model_properties = session.model_properties if session is not None else None
        return model_properties.n_ctx if model_properties is not None else None

    def _read_status(self) -> ChatStatus:
        session = self.worker.session
        shows_keys = self.transcript.has_focus and not self.is_busy and not self.footer.display
        return ChatStatus(
            message_keys=str(self.footer.format_keys(self.status_line.size.width)) if shows_keys else "",
            composer_status=[*([self.second_status] if self.second_status else []), *self.composer.status],
            shows_end=self.transcript.follows_end,
            n_ctx=self._n_ctx,
            has_model=self.worker.is_loaded,
            model_name=_name_model(session) if session is not None and not self.title_line.display else "",
            bar_glyphs=("#", "-") if self.app.has_class("ascii") else ("▰", "▱"),
            download_status=self._get_download_status(),
        )

    # Keys and the mouse

    def _send_to_prompt(self, event: Key | Paste) -> None:
        """Move the focus to the input, and send it a key or a paste that the transcript does not handle."""
        self.screen.set_focus(self.prompt)
        self.prompt.post_message(event)

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        self._scroll_by_wheel(event, -1)

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        self._scroll_by_wheel(event, 1)

    def _scroll_by_wheel(self, event: MouseScrollUp | MouseScrollDown, direction: int) -> None:
        """Scroll the transcript if the mouse is over a widget that cannot scroll, such as the status line."""
        event.stop()
        self.transcript.scroll_rows(direction * max(1, round(self.app.scroll_sensitivity_y)))

    # Title, footer and notices

    def on_completing_editor_completions_toggled(self) -> None:
        self.footer.redraw()

    def on_resize(self) -> None:
        self.title_line.fold()
        self.status_line.redraw()  # the status line shows the name of the model while the title line is hidden
        self.footer.redraw()
        self._centre_transcript()

    def apply_settings(self, settings: Settings) -> None:
        """Apply the settings `footer` and `centered`."""
        self._is_centered = settings.centered
        self._centre_transcript()
        self.prompt.update_placeholder()
        self.footer.shows_keys = settings.footer
        self.footer.redraw()

    def _centre_transcript(self) -> None:
        margin = max(0, (self.size.width - _CENTERED_COLUMNS) // 2) if self._is_centered else 0
        if self.transcript.styles.margin.left != margin:
            self.transcript.styles.margin = (0, margin)

    def show_frame(self) -> None:
        """Update the title line, the title of the window and the footer."""
        session, view = self.worker.session, self.view
        if session is not None and view is not None:
            marks = describe_settings(session.settings, session.base_settings, view.persona)
            if not session.store.is_persistent:
                marks += ("ephemeral",)
            title = view.conversation.title if view.path else ""
            self.title_line.show(ChatTitle(title, _name_model(session), marks))
            textual_private.set_window_title(self.app, f"{title} - edgechat" if title else "edgechat")
        self.footer.redraw()
        if self.composer_bar is None and not self.composer.is_empty:
            from edgechat.tui.widgets.composer_bar import ComposerBar

            self.composer_bar = ComposerBar(self._read_composer)
            self.mount(self.composer_bar, before=self.prompt)
        if self.composer_bar is not None:
            self.composer_bar.redraw()

    def show_offer(self, text: str) -> None:
        """Offer an earlier reply above the input until the next key; `text` says when it was asked for."""
        if self.earlier_offer is None:
            from edgechat.tui.widgets.earlier_offer import EarlierOffer

            self.earlier_offer = EarlierOffer()
            self.mount(self.earlier_offer, before=self.status_line)
        self.earlier_offer.show(text, self.footer.key_label("chat.earlier") or "/earlier")

    def hide_offer(self) -> None:
        """Remove the offer of an earlier reply."""
        if self.earlier_offer is not None:
            self.earlier_offer.display = False

    def format_alternative_keys(self) -> str:
        """Return a hint that names the keys for the other alternatives of a message."""
        area = "message" if self.transcript.has_focus else "chat"
        return f"{self.footer.key_label(f'{area}.previous', f'{area}.next')} other reply"

    def _read_composer(self) -> ComposerState:
        return self.composer.read_state(self._n_ctx)._replace(up_key=self.footer.key_label("prompt.up"))

    def _read_focused_part(self) -> str:
        """Return the part of the screen whose keys the footer shows."""
        focused = self.screen.focused  # not `has_focus` of the widgets, which changes later
        if self.app.screen_stack[-1:] != [self.screen]:  # the keys do not work below another screen
            return "covered"
        if focused not in {self.prompt, self.transcript, None}:
            return "list" if self.size.width < self.app.size.width else "covered"  # the list shows its keys itself
        if focused is not self.transcript and self.prompt.shows_completions:
            return "completions"
        if self.is_replying and focused is not None:
            return "reasoning" if self.is_generating and self.is_reasoning else "reply"
        return self._read_transcript_part() if focused is self.transcript else self._read_input_part()

    def _read_transcript_part(self) -> str:
        entry = self.transcript.current_message
        if entry is not None and (entry.citations or entry.passage_set is not None):
            return "cited"
        if entry is not None and entry.alternative[1] > 1:
            return "replies" if entry.kind == "assistant" else "versions"
        return "conversation"

    def _read_input_part(self) -> str:
        if self.composer.edited_id is not None:
            return "edit"
        return "input" if self.prompt.text else "empty input"

    def ask(self, question: str) -> None:
        """Show a question in the footer until the next key, which is the answer."""
        self.show_notice(question, "warning", until_key=True)

    def show_notice(self, text: str, severity: Severity, *, until_key: bool = False) -> None:
        """Show a notice in the footer, for a few seconds or until the next key; on a low screen, in the status line."""
        if self.app.size.height >= _MIN_NOTICE_ROWS:
            self.footer.show_notice(text, severity, until_key=until_key)
        else:
            self.status_line.show_state(self.status_line.state, text)


def _name_model(session: Session) -> str:
    """Return the name of the model; for a remote model, with its place, so that the user sees where words go."""
    return session.source.description or session.model_name
