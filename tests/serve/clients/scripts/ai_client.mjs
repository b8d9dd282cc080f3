// Vercel's AI SDK with its providers for OpenAI-compatible servers and for OpenAI (the Responses API).
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateObject, generateText, jsonSchema, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import {
  catchError, chatModel, city, count, embeddingModel, longText, measureCancel, person, readMetrics, report, url,
  weatherQuestion,
} from "./report.mjs";

const provider = createOpenAICompatible({
  name: "local", baseURL: url + "/v1", apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const options = { model: provider(chatModel), temperature: 0, maxOutputTokens: 16, maxRetries: 0 };
const schemaOptions = { ...options, maxOutputTokens: 60, prompt: "Describe a person." };

await report({
  async chat() {
    const { text, usage, finishReason } = await generateText({ ...options, prompt: count });
    return { text, end: finishReason, input_tokens: usage.inputTokens, output_tokens: usage.outputTokens };
  },

  async stream() {
    const result = streamText({ ...options, prompt: count });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return { text, output_tokens: (await result.usage).outputTokens };
  },

  async responses() {
    const model = createOpenAI({ baseURL: url + "/v1", apiKey: "none" })(chatModel);
    return (await generateText({ ...options, model, prompt: count })).text;
  },

  async tool_runner() {
    const calls = [];
    const execute = (input) => { calls.push(input); return "rain"; };
    const get_weather = tool({ description: "The weather in a city", inputSchema: jsonSchema(city), execute });
    await generateText({
      ...options, maxOutputTokens: 100, prompt: weatherQuestion, tools: { get_weather }, stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
    });
    return { name: "get_weather", arguments: calls[0] };
  },

  async schema() {
    return (await generateObject({ ...schemaOptions, schema: jsonSchema(person) })).object;
  },

  async partial_schema() {
    const result = streamObject({ ...schemaOptions, schema: jsonSchema(person) });
    let last;
    for await (last of result.partialObjectStream);
    return last;
  },

  async tools_and_schema() {
    const get_weather = tool({ description: "The weather in a city", inputSchema: jsonSchema(city) });
    const result = await generateText({
      ...schemaOptions, tools: { get_weather }, toolChoice: "none",
      output: Output.object({ schema: jsonSchema(person) }),
    });
    return { calls: [], parsed: result.output };
  },

  async embeddings() {
    const model = provider.textEmbeddingModel(embeddingModel);
    return (await embedMany({ model, values: ["hello world", "the"] })).embeddings.map((vector) => vector.length);
  },

  full_context: () => catchError(() => generateText({ ...options, prompt: longText })),

  cancel: () => measureCancel(async () => {
    const controller = new AbortController();
    const result = streamText({
      ...options, maxOutputTokens: 1500, prompt: "Write a long story.", abortSignal: controller.signal,
    });
    const pieces = result.textStream[Symbol.asyncIterator]();
    await pieces.next();
    const { running } = await readMetrics();
    controller.abort();
    return running;
  }),
});
