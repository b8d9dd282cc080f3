// Vercel's AI SDK with OpenAI's provider, which uses the Responses API and sends earlier replies as item references.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import {
  catchError, chatModel, city, count, longText, person, report, url, weatherQuestion,
} from "./report.mjs";

const model = createOpenAI({ baseURL: url + "/v1", apiKey: "none" }).responses(chatModel);

function makeOptions(prompt, options = {}) {
  return { model, prompt, temperature: 0, maxOutputTokens: 16, maxRetries: 0, ...options };
}

await report({
  async chat() {
    const { text, finishReason, usage } = await generateText(makeOptions(count));
    return { text, end: finishReason, input_tokens: usage.inputTokens, output_tokens: usage.outputTokens };
  },

  async stream() {
    const result = streamText(makeOptions(count));
    let text = "";
    for await (const part of result.textStream) text += part;
    return { text, output_tokens: (await result.usage).outputTokens };
  },

  async conversation() {
    const first = await generateText(makeOptions(count));
    const messages = [
      { role: "user", content: count }, ...first.response.messages, { role: "user", content: "Go on." },
    ];
    const second = await generateText(makeOptions(undefined, { messages }));
    return [first.text, second.text];
  },

  async tool_runner() {
    const calls = [];
    const execute = (input) => { calls.push(input); return "rain"; };
    const weather = tool({ description: "The weather in a city", inputSchema: jsonSchema(city), execute });
    await generateText(makeOptions(weatherQuestion, {
      tools: { get_weather: weather }, stopWhen: stepCountIs(2), maxOutputTokens: 100,
      providerOptions: { openai: { parallelToolCalls: false } },
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
    }));
    return { name: "get_weather", arguments: calls[0] };
  },

  async schema() {
    const output = Output.object({ schema: jsonSchema(person) });
    return (await generateText(makeOptions("Describe a person.", { output, maxOutputTokens: 60 }))).output;
  },

  full_context: () => catchError(() => generateText(makeOptions(longText))),
});
