// The official JavaScript client of Ollama.
import { Ollama } from "ollama";
import {
  catchError, chatModel, city, count, embeddingModel, longText, measureCancel, person, readMetrics, report, url,
  weatherQuestion,
} from "./report.mjs";

const client = new Ollama({ host: url });

function create(text, n = 16, options = {}) {
  return client.chat({
    model: chatModel, messages: [{ role: "user", content: text }], options: { temperature: 0, num_predict: n },
    ...options,
  });
}

await report({
  async chat() {
    const reply = await create(count);
    return {
      text: reply.message.content, end: reply.done_reason, input_tokens: reply.prompt_eval_count,
      output_tokens: reply.eval_count,
    };
  },

  async stream() {
    let text = "", last;
    for await (const part of await create(count, 16, { stream: true })) {
      text += part.message.content;
      last = part;
    }
    return { text, output_tokens: last.eval_count };
  },

  async offered_tools() {
    // The client has no parameter for tool_choice, so the model may call the tool or reply with a text.
    const weather = { name: "get_weather", description: "The weather in a city", parameters: city };
    const tools = [{ type: "function", function: weather }];
    const tool_calls = [{ function: { name: "get_weather", arguments: { city: "Paris" } } }];
    const messages = [
      { role: "user", content: weatherQuestion }, { role: "assistant", content: "", tool_calls },
      { role: "tool", tool_name: "get_weather", content: "rain" },
    ];
    const replies = [await create(weatherQuestion, 16, { tools }), await create("", 16, { messages, tools })];
    return replies.map(({ message }) => Boolean(message.content || message.tool_calls));
  },

  async schema() {
    return JSON.parse((await create("Describe a person.", 60, { format: person })).message.content);
  },

  async embeddings() {
    const reply = await client.embed({ model: embeddingModel, input: ["hello world", "the"] });
    return reply.embeddings.map((vector) => vector.length);
  },

  async models() {
    return (await client.list()).models.map((model) => model.model);
  },

  full_context: () => catchError(() => create(longText)),
  unknown_model: () => catchError(() => client.show({ model: "no-such-model" })),

  cancel: () => measureCancel(async () => {
    const parts = await create("Write a long story.", 1500, { stream: true });
    await parts[Symbol.asyncIterator]().next();
    const { running } = await readMetrics();
    parts.abort();
    return running;
  }),
});
