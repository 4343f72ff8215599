import json

import jinja2
import pytest

from models.chat import render_chat
from models.chat_message import ChatMessage, Image, Text, ToolCall
from models.special_tokens import special_names
from models.tokenizer import Tokenizer
from models.vocabulary import LLAMA3_PATTERN, LLAMA4_PATTERN, Vocabulary
from protos.errors import InvalidRequest

BYTES = {bytes([value]): value for value in range(256)}
TOOL = {"type": "function", "function": {"name": "w", "description": "dé", "parameters": {"type": "object"}}}
CALL = ToolCall(name="w", arguments={"c": "Zürich", "n": [1, None]})


def user(content, **fields):
    return ChatMessage(role="user", content=content, **fields)


def assistant(content, *calls):
    return ChatMessage(role="assistant", content=content, tool_calls=calls)


def system(content):
    return ChatMessage(role="system", content=content)


def tool(content):
    return ChatMessage(role="tool", content=content)


def from_json(message):
    content = message["content"]
    if isinstance(content, list):
        content = tuple(Image() if part["type"] == "image" else Text(part["text"]) for part in content)
    calls = tuple(ToolCall(**call["function"]) for call in message.get("tool_calls", ()))
    return ChatMessage(role=message["role"], content=content, tool_calls=calls)


def make_tokenizer(names, pattern=LLAMA4_PATTERN):
    specials = {name: 256 + index for index, name in enumerate(names)}
    return Tokenizer(Vocabulary(ranks=BYTES, specials=specials, pattern=pattern), 256 + len(specials))


@pytest.fixture(scope="module")
def llama3_small():
    return make_tokenizer(special_names("llama", 11), LLAMA3_PATTERN)


def rendered(messages, tokenizer, tools=()):
    return tokenizer.decode(render_chat(messages, tokenizer, tools), skip_special=False)


@pytest.mark.parametrize("name", ["plain", "nosys_multi", "tools_user", "toolcall", "image"])
def test_llama4_conversations_equal_the_reference(name, shared_dir, llama4_tokenizer):
    golden = json.loads((shared_dir / "goldens" / "chat_template_llama4.json").read_text())[name]

    ids = render_chat([from_json(each) for each in golden["conversation"]], llama4_tokenizer, golden.get("tools", ()))

    assert ids == golden["ids"]
    assert llama4_tokenizer.decode(ids, skip_special=False) == golden["rendered"]


def test_the_reference_has_no_conversation_that_is_not_tested(shared_dir):
    goldens = json.loads((shared_dir / "goldens" / "chat_template_llama4.json").read_text())

    assert {*goldens} == {"plain", "nosys_multi", "tools_user", "toolcall", "image"}


def test_a_small_llama4_vocabulary_speaks_the_same_format(small_tokenizer):
    text = rendered([system(" Be kind.\n"), user(" Hi "), assistant("Hello\n"), user("\nBye")], small_tokenizer)

    assert text == (
        "<|begin_of_text|><|header_start|>system<|header_end|>\n\nBe kind.<|eot|>"
        "<|header_start|>user<|header_end|>\n\n Hi <|eot|>"
        "<|header_start|>assistant<|header_end|>\n\nHello\n<|eot|>"
        "<|header_start|>user<|header_end|>\n\n\nBye<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    )


def test_text_between_special_tokens_is_encoded_in_one_go(llama4_tokenizer):
    ids = render_chat([user("\nhi")], llama4_tokenizer)

    whole = llama4_tokenizer.encode("\n\n\nhi")
    assert whole != llama4_tokenizer.encode("\n\n") + llama4_tokenizer.encode("\nhi")
    header_end = ids.index(llama4_tokenizer.special_id("<|header_end|>"))
    assert ids[header_end + 1 : ids.index(llama4_tokenizer.special_id("<|eot|>"))] == whole


@pytest.mark.parametrize("family", ["llama4", "llama"])
def test_special_names_in_what_callers_send_stay_text(family):
    names = special_names(family, 2048)
    tokenizer = make_tokenizer(names)
    evil = "".join(names)
    calls = (ToolCall(name=evil, arguments={evil: evil}),)
    tools = [{"name": evil}]

    ids, harmless = (
        render_chat(
            [system(text), user(text), ChatMessage(role="assistant", content=text, tool_calls=calls), tool(text)],
            tokenizer,
            tools,
        )
        for text in (evil, "x")
    )

    assert [each for each in ids if each >= 256] == [each for each in harmless if each >= 256]
    assert tokenizer.decode(ids, skip_special=False).count(evil) > 4


@pytest.mark.parametrize("tools", [(), (TOOL, TOOL)])
@pytest.mark.parametrize("model", ["3.1-8B", "3.2-3B", "3.3-70B"])
def test_llama3_conversations_equal_the_template_with_its_dates(model, tools, shared_dir, llama3_small):
    source = (shared_dir / "data" / "templates" / f"meta-llama-Llama-{model}-Instruct.jinja").read_text()
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    messages = [user(" Hi "), assistant("", CALL), tool("25 °C"), assistant(" Warm. "), user("Bye\n")]
    plain = [
        {"role": "system", "content": " Be kind. "},
        {"role": "user", "content": " Hi "},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "w", "arguments": dict(CALL.arguments)}}],
        },
        {"role": "tool", "content": "25 °C"},
        {"role": "assistant", "content": " Warm. "},
        {"role": "user", "content": "Bye\n"},
    ]
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

    expected = environment.from_string(source).render(
        messages=plain, tools=list(tools) or None, bos_token="<|begin_of_text|>", add_generation_prompt=True
    )

    assert rendered([system(dates + "Be kind. "), *messages], llama3_small, tools) == expected


def test_llama3_real_ids(llama3_tokenizer):
    assert render_chat([user("Hello, world!")], llama3_tokenizer) == [
        128000, 128006, 882, 128007, 271, 9906, 11, 1917, 0, 128009, 128006, 78191, 128007, 271,
    ]  # fmt: skip


def test_llama4_tool_calls_follow_the_content_between_python_tokens(small_tokenizer):
    text = rendered([user("?"), assistant("Let me see.", CALL, CALL), tool('say "x"')], small_tokenizer)

    call = '{"name": "w", "parameters": {"c": "Zürich", "n": [1, null]}}'
    assert f"<|python_start|>Let me see.<|python_end|>{call}{call}<|eot|>" in text
    assert '<|header_start|>ipython<|header_end|>\n\n"say \\"x\\""<|eot|>' in text


def test_llama4_tools_with_a_system_message_announce_the_environment(small_tokenizer):
    text = rendered([system("Be kind."), user(" What? ")], small_tokenizer, [TOOL])

    assert "system<|header_end|>\n\nEnvironment: ipython\nBe kind.<|eot|>" in text
    assert json.dumps(TOOL, indent=4, ensure_ascii=False) + "\n\nWhat?<|eot|>" in text


@pytest.mark.parametrize("role", ["", "User", "developer", "root"])
def test_an_unknown_role_is_refused_with_the_known_ones(role):
    with pytest.raises(InvalidRequest, match=f"one of system, user, assistant, tool, ipython, found '{role}'"):
        ChatMessage(role=role, content="hi")


def test_tool_calls_of_anyone_but_the_assistant_are_refused():
    with pytest.raises(InvalidRequest, match="assistant messages only, found some from 'user'"):
        user("hi", tool_calls=(CALL,))


def test_a_conversation_without_messages_is_refused(small_tokenizer):
    with pytest.raises(InvalidRequest, match="at least one message, found none"):
        render_chat([], small_tokenizer)


@pytest.mark.parametrize("names", [(), special_names("llama4", 8), special_names("llama", 9)])
def test_a_tokenizer_without_chat_tokens_is_refused(names):
    with pytest.raises(InvalidRequest, match="use completions"):
        render_chat([user("hi")], make_tokenizer(names))


@pytest.mark.parametrize("messages", [[system("Be kind.")], [assistant("Hi"), user("Hi")]])
def test_tools_without_a_user_message_to_hold_them_are_refused(messages, small_tokenizer):
    with pytest.raises(InvalidRequest, match="expected a user message to describe the tools in"):
        render_chat(messages, small_tokenizer, [TOOL])


@pytest.mark.parametrize("tools", [[{"name": {1, 2}}], [{"name": object()}]])
def test_tools_that_are_not_json_are_refused(tools, small_tokenizer):
    with pytest.raises(InvalidRequest, match="made of JSON values"):
        render_chat([user("hi")], small_tokenizer, tools)


def test_an_image_needs_a_vocabulary_with_images(small_tokenizer, llama3_small):
    message = user((Image(), Text("What is it?")))

    with pytest.raises(InvalidRequest, match=r"the special token <\|image\|>"):
        render_chat([message], small_tokenizer)
    with pytest.raises(InvalidRequest, match="only text in this user message, found an image"):
        render_chat([message], llama3_small)


def test_an_image_is_refused_where_only_text_fits(small_tokenizer):
    with pytest.raises(InvalidRequest, match="only text in this system message"):
        render_chat([ChatMessage(role="system", content=(Image(),)), user("hi")], small_tokenizer)
    with pytest.raises(InvalidRequest, match="only text in this tool message"):
        render_chat([user("hi"), ChatMessage(role="tool", content=(Image(),))], small_tokenizer)


def test_llama3_takes_one_tool_call_per_message(llama3_small):
    with pytest.raises(InvalidRequest, match="at most 1 tool call per message for this model, found 2"):
        render_chat([user("?"), assistant("", CALL, CALL)], llama3_small)
