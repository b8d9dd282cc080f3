// Ollama's official client for JavaScript, against a server whose address is the first argument. Prints what it got, in
// JSON.
import { Ollama } from "ollama";

const client = new Ollama({ host: process.argv[2] });
const model = "starter";
const messages = [{ role: "user", content: "Count from 1 to 20." }];
const options = { temperature: 0, num_predict: 16 };
const schema = {
  type: "object",
  properties: { age: { type: "integer", minimum: 0, maximum: 150 } },
  required: ["age"],
  additionalProperties: false,
};

const found = {};

const chat = await client.chat({ model, messages, options });
found.chat = chat.message.content;
found.reason = chat.done_reason;

found.stream = "";
for await (const part of await client.chat({ model, messages, options, stream: true })) {
  found.stream += part.message.content;
  found.count = part.eval_count ?? found.count;
}

found.generated = (await client.generate({ model, prompt: "One, two,", raw: true, options })).response;

found.json = JSON.parse((await client.chat({ model, messages, format: schema, options })).message.content);

found.names = (await client.list()).models.map((entry) => entry.name);
found.capabilities = (await client.show({ model })).capabilities;
found.embeddings = (await client.embed({ model: process.argv[3], input: ["hello", "world"] })).embeddings.length;

try {
  await client.chat({ model: "unknown", messages });
} catch (error) {
  found.error = error.message;
}

const aborted = await client.chat({ model, messages, stream: true });
try {
  for await (const part of aborted) {
    if (!part.done) aborted.abort();
  }
} catch (error) {
  found.aborted = error.name;
}

console.log(JSON.stringify(found));
