// OpenAI's Node client over its whole surface, against a live edge with the real vLLM behind it.
// Run by test_documented_clients.py: EDGE_URL, EDGE_KEY and MODEL say where and what.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const { EDGE_URL, EDGE_KEY, MODEL: model } = process.env;
const client = new OpenAI({ baseURL: `${EDGE_URL}/v1`, apiKey: EDGE_KEY, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "How do I boil an egg?" }];
const schema = {
  type: "object",
  properties: { state: { type: "string", enum: ["on", "off"] } },
  required: ["state"],
  additionalProperties: false,
};
const light = { type: "function", function: { name: "switch_light", strict: true, parameters: schema } };
const isState = (text) => assert.match(JSON.parse(text).state, /^(on|off)$/);

test("chat", async () => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 4, n: 2, seed: 7 });
  assert.equal(answer.choices.length, 2);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 8);
  assert.match(answer._request_id, /^req-/);
});

test("chat, streamed", async () => {
  const asked = { model, messages, max_tokens: 8, temperature: 0 };
  const whole = await client.chat.completions.create(asked);
  const stream = await client.chat.completions.create({
    ...asked,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);
});

test("the stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages, max_tokens: 4, temperature: 0 });
  const pieces = [];
  stream.on("content", (delta) => pieces.push(delta));
  const answer = await stream.finalChatCompletion();
  assert.equal(pieces.join(""), answer.choices[0].message.content);
});

test("a tool", async () => {
  const tool_choice = { type: "function", function: { name: "switch_light" } };
  const answer = await client.chat.completions.create({
    model,
    messages,
    tools: [light],
    tool_choice,
    temperature: 0,
  });
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.name, "switch_light");
  isState(call.function.arguments);
});

test("the tool runner, streamed", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model,
    messages,
    stream: true,
    max_tokens: 64,
    temperature: 0,
    tool_choice: { type: "function", function: { name: "switch_light" } },
    tools: [{ ...light, function: { ...light.function, parse: JSON.parse, function: (args) => asked.push(args.state) } }],
  });
  await runner.done();
  assert.equal(asked.length, 1);
  assert.match(asked[0], /^(on|off)$/);
});

test("structured output", async () => {
  const answer = await client.chat.completions.parse({
    model,
    messages,
    temperature: 0,
    response_format: { type: "json_schema", json_schema: { name: "light", strict: true, schema } },
  });
  isState(answer.choices[0].message.content);
});

test("log probabilities", async () => {
  const asked = { model, messages, max_tokens: 2, temperature: 0, logprobs: true, top_logprobs: 2 };
  const { content } = (await client.chat.completions.create(asked)).choices[0].logprobs;
  assert.equal(content.length, 2);
  assert.equal(content[0].top_logprobs.length, 2);
  assert.equal(content[0].token, content[0].top_logprobs[0].token);
});

test("completions", async () => {
  const asked = { model, prompt: ["One two", "Three"], max_tokens: 3, temperature: 0 };
  const whole = await client.completions.create(asked);
  assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1]);
  const texts = ["", ""];
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) {
    for (const choice of chunk.choices) texts[choice.index] += choice.text;
  }
  assert.deepEqual(texts, whole.choices.map((choice) => choice.text));
});

test("models", async () => {
  const names = [];
  for await (const card of client.models.list()) names.push(card.id);
  assert.ok(names.includes(model));
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("responses", async () => {
  const asked = { model, input: "Hello", max_output_tokens: 4, temperature: 0 };
  const made = await client.responses.create(asked);
  assert.ok(made.output_text);
  assert.equal((await client.responses.retrieve(made.id)).output_text, made.output_text);
  await assert.rejects(client.responses.cancel(made.id), OpenAI.BadRequestError);
  const kinds = [];
  for await (const event of await client.responses.create({ ...asked, stream: true })) kinds.push(event.type);
  assert.equal(kinds.at(0), "response.created");
  assert.equal(kinds.at(-1), "response.completed");
});

test("headers", async () => {
  const asked = client.chat.completions.create(
    { model, messages, max_tokens: 1 },
    { headers: { "x-request-id": "from-node" } },
  );
  const { response, request_id } = await asked.withResponse();
  assert.equal(request_id, "from-node");
  assert.equal(response.headers.get("content-type"), "application/json");
});

test("errors", async () => {
  const ask = (changes, of = client) => of.chat.completions.create({ model, messages, max_tokens: 1, ...changes });
  await assert.rejects(ask({ model: "no-such" }), OpenAI.NotFoundError);
  await assert.rejects(ask({ model: "no-such", stream: true }), OpenAI.NotFoundError);
  await assert.rejects(ask({ temperature: -1 }), OpenAI.BadRequestError);
  await assert.rejects(ask({}, client.withOptions({ apiKey: "sk-wrong" })), (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    assert.equal(error.code, "invalid_api_key");
    assert.ok(error.requestID);
    return true;
  });
  await assert.rejects(client.files.list(), OpenAI.NotFoundError);
});

test("a time-out and an abort", async () => {
  const long = { model, messages, max_tokens: 900, ignore_eos: true };
  const timed = client.chat.completions.create(long, { timeout: 300 });
  await assert.rejects(timed, OpenAI.APIConnectionTimeoutError);
  const aborting = new AbortController();
  const stream = await client.chat.completions.create({ ...long, stream: true }, { signal: aborting.signal });
  let chunks = 0;
  for await (const _ of stream) if (++chunks === 3) aborting.abort();
  assert.ok(chunks < 900);
});
