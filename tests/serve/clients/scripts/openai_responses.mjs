// The official JavaScript client of OpenAI: the Responses API.
import OpenAI from "openai";
import {
  catchError, chatModel, city, count, longText, measureCancel, person, readMetrics, report, url, weatherQuestion,
} from "./report.mjs";

const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });
const weather = {
  type: "function", name: "get_weather", description: "The weather in a city", parameters: city, strict: true,
};

function makeOptions(input, options = {}) {
  return { model: chatModel, input, max_output_tokens: 16, temperature: 0, ...options };
}

const create = (input, options) => client.responses.create(makeOptions(input, options));

await report({
  async chat() {
    const { output_text, incomplete_details, usage } = await create(count);
    return {
      text: output_text, end: incomplete_details.reason, input_tokens: usage.input_tokens,
      output_tokens: usage.output_tokens,
    };
  },

  async stream() {
    let text = "";
    const events = client.responses.stream(makeOptions(count));
    for await (const event of events) if (event.type === "response.output_text.delta") text += event.delta;
    const { usage } = await events.finalResponse();
    return { text, output_tokens: usage.output_tokens };
  },

  async conversation() {
    const first = await create(count);
    return [first.output_text, (await create("Go on.", { previous_response_id: first.id })).output_text];
  },

  async tools() {
    const options = {
      tools: [weather], tool_choice: "required", parallel_tool_calls: false, max_output_tokens: 100,
    };
    const call = (await create(weatherQuestion, options)).output.find((item) => item.type === "function_call");
    const result = { type: "function_call_output", call_id: call.call_id, output: "rain" };
    const input = [{ role: "user", content: weatherQuestion }, call, result];
    const last = await create(input, { tools: [weather], tool_choice: "none" });
    return {
      name: call.name, arguments: JSON.parse(call.arguments), reply: last.output_text,
      later_calls: last.output.filter((item) => item.type === "function_call").length,
    };
  },

  async schema() {
    const text = { format: { type: "json_schema", name: "person", strict: true, schema: person } };
    return JSON.parse((await create("Describe a person.", { text, max_output_tokens: 60 })).output_text);
  },

  full_context: () => catchError(() => create(longText)),

  cancel: () => measureCancel(async () => {
    const events = await create("Write a long story.", { stream: true, max_output_tokens: 1500 });
    for await (const event of events) if (event.type === "response.output_text.delta") break;
    const { running } = await readMetrics();
    events.controller.abort();
    return running;
  }),
});
