// The official JavaScript client of Anthropic: messages.
import Anthropic from "@anthropic-ai/sdk";
import {
  catchError, chatModel, city, count, longText, measureCancel, person, readMetrics, report, url, weatherQuestion,
} from "./report.mjs";

const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const weather = { name: "get_weather", description: "The weather in a city", input_schema: city };
const oneCall = {
  tools: [weather], tool_choice: { type: "any", disable_parallel_tool_use: true }, max_tokens: 100,
};

function makeOptions(text, options = {}) {
  const messages = [{ role: "user", content: text }];
  return { model: chatModel, messages, max_tokens: 16, temperature: 0, ...options };
}

await report({
  async chat() {
    const { content, stop_reason, usage } = await client.messages.create(makeOptions(count));
    return {
      text: content[0].text, end: stop_reason, input_tokens: usage.input_tokens + usage.cache_read_input_tokens,
      output_tokens: usage.output_tokens,
    };
  },

  async stream() {
    let text = "";
    const events = client.messages.stream(makeOptions(count)).on("text", (piece) => { text += piece; });
    const { usage } = await events.finalMessage();
    return { text, output_tokens: usage.output_tokens };
  },

  async tools() {
    const first = await client.messages.create(makeOptions(weatherQuestion, oneCall));
    const call = first.content.at(-1);
    const messages = [
      { role: "user", content: weatherQuestion }, { role: "assistant", content: first.content },
      { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "rain" }] },
    ];
    const options = { messages, tools: [weather], tool_choice: { type: "none" } };
    const last = await client.messages.create(makeOptions("", options));
    return {
      name: call.name, arguments: call.input, end: first.stop_reason, reply: last.content[0].text,
      later_calls: last.content.filter((block) => block.type === "tool_use").length,
    };
  },

  async streamed_tools() {
    const call = (await client.messages.stream(makeOptions(weatherQuestion, oneCall)).finalMessage()).content.at(-1);
    return { name: call.name, arguments: call.input };
  },

  async schema() {
    const output_config = { format: { type: "json_schema", schema: person } };
    const reply = await client.messages.create(makeOptions("Describe a person.", { output_config, max_tokens: 60 }));
    return JSON.parse(reply.content[0].text);
  },

  async models() {
    return (await client.models.list()).data.map((model) => model.id);
  },

  full_context: () => catchError(() => client.messages.create(makeOptions(longText))),

  cancel: () => measureCancel(async () => {
    const events = client.messages.stream(makeOptions("Write a long story.", { max_tokens: 1500 }));
    const aborted = events.done().catch(() => {});
    await new Promise((resolve) => events.once("text", resolve));
    const { running } = await readMetrics();
    events.abort();
    await aborted;
    return running;
  }),
});
