// The official JavaScript client of OpenAI: chat completions and embeddings.
import OpenAI from "openai";
import {
  catchError, chatModel, city, count, embeddingModel, longText, measureCancel, person, readMetrics, report, url,
  weatherQuestion,
} from "./report.mjs";

const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });
const weather = { name: "get_weather", description: "The weather in a city", parameters: city };

function create(text, options = {}) {
  return client.chat.completions.create({
    model: chatModel, messages: [{ role: "user", content: text }], max_tokens: 16, temperature: 0, ...options,
  });
}

await report({
  async chat() {
    const { choices, usage } = await create(count);
    return {
      text: choices[0].message.content, end: choices[0].finish_reason, input_tokens: usage.prompt_tokens,
      output_tokens: usage.completion_tokens,
    };
  },

  async stream() {
    let text = "", usage;
    for await (const chunk of await create(count, { stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, output_tokens: usage.completion_tokens };
  },

  async tools() {
    const question = { role: "user", content: weatherQuestion };
    const tools = [{ type: "function", function: weather }];
    const options = { tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 100 };
    const [first] = (await create(weatherQuestion, options)).choices;
    const [call] = first.message.tool_calls;
    const messages = [question, first.message, { role: "tool", tool_call_id: call.id, content: "rain" }];
    const [last] = (await create("", { messages, tools, tool_choice: "none" })).choices;
    return {
      name: call.function.name, arguments: JSON.parse(call.function.arguments), end: first.finish_reason,
      reply: last.message.content, later_calls: last.message.tool_calls?.length ?? 0,
    };
  },

  async tool_runner() {
    const calls = [];
    const run = (parameters) => { calls.push(parameters); return "rain"; };
    const tool = { type: "function", function: { ...weather, parse: JSON.parse, function: run } };
    const runner = client.chat.completions.runTools({
      model: chatModel, messages: [{ role: "user", content: weatherQuestion }], tools: [tool], temperature: 0,
      tool_choice: { type: "function", function: { name: "get_weather" } }, max_tokens: 100,
      parallel_tool_calls: false,
    });
    await runner.done();
    return { name: "get_weather", arguments: calls[0] };
  },

  async schema() {
    const form = { type: "json_schema", json_schema: { name: "person", strict: true, schema: person } };
    const reply = await create("Describe a person.", { response_format: form, max_tokens: 60 });
    return JSON.parse(reply.choices[0].message.content);
  },

  async embeddings() {
    const reply = await client.embeddings.create({ model: embeddingModel, input: ["hello world", "the"] });
    return reply.data.map((item) => item.embedding.length);
  },

  async models() {
    return (await client.models.list()).data.map((model) => model.id);
  },

  full_context: () => catchError(() => create(longText)),

  cancel: () => measureCancel(async () => {
    const stream = await create("Write a long story.", { stream: true, max_tokens: 1500, ignore_eos: true });
    await stream[Symbol.asyncIterator]().next();
    const { running } = await readMetrics();
    stream.controller.abort();
    return running;
  }),
});
