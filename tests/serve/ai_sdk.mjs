// What a program that uses Vercel's AI SDK does, told as JSON: `node ai_sdk.mjs BASE_URL MODEL PROMPT MAX_TOKENS [tools]`.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const [baseURL, name, prompt, limit, tools] = process.argv.slice(2);
const model = createOpenAICompatible({ name: 'dali', baseURL, includeUsage: true })(name);
const common = { model, prompt, temperature: 0, maxOutputTokens: Number(limit), maxRetries: 0 };
const weather = tool({
  description: 'The weather of a city.',
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `rain in ${city}`,
});

const whole = await generateText(common);
const streamed = streamText({ ...common, tools: tools && { weather }, stopWhen: stepCountIs(3) });
const parts = [];
for await (const part of streamed.fullStream) {
  if (part.type === 'error') throw part.error;
  parts.push(part);
}
const of = (type) => parts.filter((part) => part.type === type);
console.log(
  JSON.stringify({
    whole: whole.text,
    usage: whole.usage,
    finish: whole.finishReason,
    texts: of('text-delta').map((part) => part.text),
    reasoning: of('reasoning-delta').map((part) => part.text).join(''),
    calls: of('tool-call').map(({ toolName, input }) => ({ toolName, input })),
    results: of('tool-result').map(({ output }) => output),
    last: await streamed.text,
  }),
);
