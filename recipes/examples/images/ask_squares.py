"""Ask a trained model for the colour of every square in test.jsonl."""

import json

from transformers import AutoModelForImageTextToText, AutoProcessor

import chatsft  # noqa: F401, registers the model and its processor

processor = AutoProcessor.from_pretrained("runs/squares")
model = AutoModelForImageTextToText.from_pretrained("runs/squares")
with open("test.jsonl") as file:
    chats = [json.loads(line)["messages"] for line in file]
questions = [[question] for question, _ in chats]
inputs = processor.apply_chat_template(questions, add_generation_prompt=True, tokenize=True, return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
answers = processor.batch_decode(written, skip_special_tokens=True)
right = sum(given == answer["content"] for given, (_, answer) in zip(answers, chats, strict=True))
print(f"{right} of {len(chats)} right, as in: {answers[0]}")
