"""The check every conversation passes before it is trained on."""

from chatsft.model.tokenization_gpt import ConversationError, check_conversation


def check_trainable(conversation: dict, place: str = "") -> list[dict]:
    """Return the messages of a conversation that can be rendered and has an answer to learn; an error names the `place` it stands at."""
    messages = check_conversation(conversation, place)
    if not any(message["role"] == "assistant" for message in messages):
        raise ConversationError("no assistant message, so there is nothing to learn. Add one or remove the conversation.", place)
    return messages
