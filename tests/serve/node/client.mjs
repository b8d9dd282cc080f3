// The official client for JavaScript, against a server whose address is the first argument. Prints what it got, in JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3] ?? "none", maxRetries: 0 });
const model = "starter";
const embedder = process.argv[4];
const messages = [{ role: "user", content: "Count from 1 to 20." }];
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      parameters: {
        type: "object",
        properties: { city: { type: "string", maxLength: 30 } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];
const schema = {
  type: "object",
  properties: { age: { type: "integer", minimum: 0, maximum: 150 } },
  required: ["age"],
  additionalProperties: false,
};

const found = {};

const chat = await client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0 });
found.chat = chat.choices[0].message.content;

found.stream = "";
const stream = await client.chat.completions.create({
  model, messages, max_tokens: 16, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  found.stream += chunk.choices[0]?.delta?.content ?? "";
  found.usage = chunk.usage ?? found.usage;
}

found.pinged = "";
const pinged = await client.chat.completions.create({
  model, messages: [{ role: "user", content: "one two three four five ".repeat(300) }], max_tokens: 4, stream: true,
  return_progress: true, sse_ping_interval: 0.1, logit_bias: { 0: -100, 2: -100 },  // the reply does not end at once
});
for await (const chunk of pinged) {
  found.pinged += chunk.choices[0]?.delta?.content ?? "";
  found.progress = chunk.prompt_progress ?? found.progress;
}

const called = await client.chat.completions.create({
  model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 120, temperature: 0,
});
found.call = called.choices[0].message.tool_calls[0].function;

const formed = await client.chat.completions.create({
  model, messages, max_tokens: 60, temperature: 0,
  response_format: { type: "json_schema", json_schema: { name: "age", schema } },
});
found.json = JSON.parse(formed.choices[0].message.content);

if (embedder) {
  const vectors = await client.embeddings.create({ model: embedder, input: ["a", "the"] });
  found.vectors = vectors.data.map((each) => each.embedding.length);
}

found.models = (await client.models.list()).data.map((each) => each.id);

try {
  await client.models.retrieve("gpt-9");
} catch (error) {
  found.error = { status: error.status, code: error.code, name: error.constructor.name };
}

console.log(JSON.stringify(found));
