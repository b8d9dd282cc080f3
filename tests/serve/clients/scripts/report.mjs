// Inputs and output of the client scripts: `node SCRIPT URL CHAT_MODEL EMBEDDING_MODEL`, as in report.py.
export const [url, chatModel, embeddingModel] = process.argv.slice(2);
export const count = "Count from 1 to 20.";
export const weatherQuestion = "What is the weather in Paris?";
export const longText = "word ".repeat(5000);
export const city = {
  type: "object", required: ["city"], additionalProperties: false,
  properties: { city: { type: "string", maxLength: 12 } },
};
export const person = {
  type: "object", required: ["name", "age"], additionalProperties: false,
  properties: { name: { type: "string", maxLength: 12 }, age: { type: "integer", minimum: 0, maximum: 99 } },
};

export async function readMetrics() {
  const values = { completion: 0, running: 0, waiting: 0 };
  for (const line of (await (await fetch(url + "/metrics")).text()).split("\n"))
    for (const name in values)
      if (line.startsWith(`edgechat_${name}_tokens_total `) || line.startsWith(`edgechat_requests_${name}{`))
        values[name] += Number(line.split(" ").at(-1));
  return values;
}

async function waitUntilIdle() {
  const deadline = Date.now() + 120_000;
  for (;;) {
    const metrics = await readMetrics();
    if (metrics.running + metrics.waiting === 0 || Date.now() > deadline) return metrics;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// Return the requests that remain after `startAndCancel`, and how many tokens they generated.
export async function measureCancel(startAndCancel) {
  const before = await waitUntilIdle();
  const wasRunning = await startAndCancel();
  const after = await waitUntilIdle();
  return {
    was_running: wasRunning, remaining: after.running + after.waiting, n_tokens: after.completion - before.completion,
  };
}

// Return type, status and text of the error that `run` throws.
export async function catchError(run) {
  try {
    return { type: null, result: String(await run()) };
  } catch (error) {
    const bases = [];
    for (let type = Object.getPrototypeOf(error.constructor); type?.name; type = Object.getPrototypeOf(type))
      bases.push(type.name);
    return {
      type: error.constructor.name, bases, status: error.status ?? error.statusCode ?? error.status_code ?? null,
      text: String(error.message),
    };
  }
}

// Run the functions and print their results by name.
export async function report(functions) {
  const results = {};
  for (const [name, run] of Object.entries(functions))
    try {
      results[name] = await run();
    } catch (error) {
      results[name] = { failed: String(error?.stack ?? error) };
    }
  console.log(JSON.stringify(results));
}
