"""A dialogue on a web page, with one speaker or two side by side.

The turns stay in the server, as ids; the browser sends what was typed and is shown text. So nothing sent can become a control token.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from chatsft.dialogue.conversation import ChatError, Conversation
from chatsft.dialogue.desk import Desk
from chatsft.dialogue.guard import RequestLimits
from chatsft.dialogue.speaker import AnswerSettings, Speaker, stream_tokens
from chatsft.dialogue.turns import Turn, show_turns, turn_of_message, unmark
from chatsft.generation.tool_state import ControlTokens

LOCAL_HOSTS = ("127.0.0.1", "localhost")
MAX_CHARACTERS = 20_000
NUM_WAITING = 8
NUM_SESSIONS = 100
SECONDS_BETWEEN_VIEWS = 0.05
WAITING = "Waiting: the model is answering someone else."
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # those of the computer: none is fetched


START = gr.update(value="", submit_btn=False, stop_btn=True)
"""The message box when an answer begins: empty, with a button to stop; what is typed from then on stays."""

END = gr.update(submit_btn=True, stop_btn=False)
"""The message box when an answer has ended."""


class Page:
    """The page of one or two speakers: `blocks` is the gradio application."""

    def __init__(self, speakers: Sequence[Speaker], settings: AnswerSettings, system: str = ""):
        self.speakers, self.settings = speakers, settings
        self.desk = Desk(NUM_WAITING)
        title = " | ".join(speaker.name for speaker in speakers)
        with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as self.blocks:
            self.turns = gr.State([], time_to_live=24 * 3600)
            with gr.Row():
                self.chatbots = [make_chatbot(speaker.name) for speaker in speakers]
            self.message = gr.Textbox(
                placeholder="Message", show_label=False, max_length=MAX_CHARACTERS, submit_btn=True, elem_id="message", autofocus=True
            )
            with gr.Accordion("Settings", open=False):
                self.controls = make_controls(settings, system)
            self.connect()

    def connect(self) -> None:
        """Tie the page's events to what answers them."""
        inputs, outputs = [self.turns, *self.controls], [self.message, self.turns, *self.chatbots]
        options = {"api_visibility": "private", "show_progress": "hidden"}
        running = [self.message.submit(self.send, [self.message, *inputs], outputs, **options)]
        for index, chatbot in enumerate(self.chatbots):
            running.append(chatbot.retry(self.retry, inputs, outputs, **options))
            running.append(chatbot.edit(self.make_edit(index), inputs, outputs, **options))
        for chatbot in self.chatbots:
            chatbot.clear(self.clear, None, outputs, cancels=running, **options)
        self.message.stop(lambda: END, None, self.message, cancels=running, **options)

    def launch(self, host: str, port: int | None) -> str:
        """Serve the page from a thread of its own and return its address."""
        middleware = [Middleware(RequestLimits)]
        if host in LOCAL_HOSTS:  # no other page can reach it under a name of its own
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_HOSTS)))
        _, address, _ = self.blocks.queue(default_concurrency_limit=None).launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            quiet=True,
            footer_links=[],
            theme=gr.themes.Default(**FONTS),
            state_session_capacity=NUM_SESSIONS,
            prevent_thread_lock=True,
            app_kwargs={"middleware": middleware},
        )
        return address

    def send(self, message: str, turns: list[Turn], *controls) -> Iterator[list]:
        """Answer a new message."""
        if message.strip():
            yield from self.answer(message, turns, *controls)
        else:
            yield [gr.skip()] * (2 + len(self.speakers))

    def retry(self, turns: list[Turn], *controls) -> Iterator[list]:
        """Answer the last message anew."""
        yield from self.answer(turns[-1].message, turns[:-1], *controls)

    def make_edit(self, index: int) -> Callable:
        """Return what answers a message edited in the dialogue with speaker `index`; what came after it is forgotten."""

        def edit(event: gr.EditData, turns: list[Turn], *controls) -> Iterator[list]:
            number = turn_of_message(show_turns(turns, index, self.speakers[index]), event.index)
            yield from self.answer(unmark(event.value), turns[:number], *controls)

        return edit

    def clear(self) -> list:
        """Start over."""
        return [END, [], *[[] for _ in self.speakers]]

    def answer(self, message: str, turns: list[Turn], system: str, *numbers: float) -> Iterator[list]:
        """Yield what the page shows while one speaker after the other answers; a refused message leaves the page as it was."""
        settings = change_settings(self.settings, *numbers)
        try:
            conversations = self.prepare(message, turns, system, settings)
            self.desk.enter()
        except ChatError as error:
            raise gr.Error(str(error), print_exception=False) from None
        turn, has_model = Turn(message, tuple([] for _ in self.speakers)), False
        try:
            yield [START, *self.view([*turns, turn])]
            for _ in self.desk.wait():
                yield [gr.skip(), *self.view([*turns, turn], is_waiting=True)]
            has_model = True
            for turn in self.generate(message, conversations, settings):
                yield [gr.skip(), *self.view([*turns, turn])]
        except Exception as error:
            yield [END, *self.view([*turns, turn])]
            raise gr.Error(f"The answer ended early: {error}") from error
        finally:
            self.desk.leave(has_model)
        yield [END, *self.view([*turns, turn])]

    def prepare(self, message: str, turns: list[Turn], system: str, settings: AnswerSettings) -> list[Conversation]:
        """Check the message and give each speaker the turns that its context has room for."""
        if len(message) + len(system) > MAX_CHARACTERS:
            raise ChatError(f"Message and system text have {len(message) + len(system):,} characters; {MAX_CHARACTERS:,} are let in.")
        conversations = []
        for index, speaker in enumerate(self.speakers):
            said = [(turn.message, turn.answers[index]) for turn in turns]
            conversations.append(speaker.start(settings, system, said))
            num_dropped = conversations[-1].drop_oldest_turns(message)
            if num_dropped:
                gr.Info(f"{speaker.name} no longer sees the oldest {num_dropped} turn(s): the conversation is longer than its context.")
        return conversations

    def generate(self, message: str, conversations: list[Conversation], settings: AnswerSettings) -> Iterator[Turn]:
        """Yield the turn as it grows, at most every SECONDS_BETWEEN_VIEWS, and as it ends."""
        answers = [[] for _ in self.speakers]
        shown = time.monotonic()
        for speaker, conversation, answer in zip(self.speakers, conversations, answers, strict=True):
            terminal = ControlTokens.of(speaker.tokenizer).terminal
            with closing(stream_tokens(partial(speaker.answer, conversation, message, settings))) as tokens:
                for token in tokens:
                    answer += [] if token in terminal else [token]
                    if time.monotonic() - shown > SECONDS_BETWEEN_VIEWS:
                        yield Turn(message, tuple(map(list, answers)))
                        shown = time.monotonic()
        yield Turn(message, tuple(map(list, answers)))

    def view(self, turns: list[Turn], is_waiting: bool = False) -> list:
        """Return the contents of the state and of the dialogues."""
        dialogues = [show_turns(turns, index, speaker) for index, speaker in enumerate(self.speakers)]
        if is_waiting:
            for dialogue in dialogues:
                dialogue[-1] = {"role": "assistant", "content": "", "metadata": {"title": WAITING, "status": "pending"}}
        return [turns, *dialogues]


def make_chatbot(name: str) -> gr.Chatbot:
    """Make the view of a dialogue: text as it was written, of which nothing is loaded or run."""
    return gr.Chatbot(label=name, editable="user", render_markdown=False, buttons=[], height="65vh")


def make_controls(settings: AnswerSettings, system: str) -> list:
    """Make the inputs of a system text and of what `change_settings` takes, within what the command line allows."""
    return [
        gr.Textbox(system, label="System text", max_length=MAX_CHARACTERS),
        gr.Slider(0, max(2.0, settings.temperature), settings.temperature, label="Temperature (0 is greedy)"),
        gr.Slider(0, max(200, settings.top_k), settings.top_k, step=1, label="Sample among the most likely tokens (0 is all)"),
        gr.Slider(1, settings.max_new_tokens, settings.max_new_tokens, step=1, label="Longest answer in tokens"),
    ]


def change_settings(settings: AnswerSettings, temperature: float, top_k: float, max_new_tokens: float) -> AnswerSettings:
    """Return the settings with the page's numbers, which gradio has checked against its sliders."""
    return dataclasses.replace(settings, temperature=float(temperature), top_k=int(top_k), max_new_tokens=int(max_new_tokens))
