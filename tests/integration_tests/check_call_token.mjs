// A service in another language: check each call token of a file as docs/credentials.md says, with `jose`.
// node check_call_token.mjs VECTORS prints {name: verdict}. LRA_JOSE is the path of the library's module.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { createLocalJWKSet, decodeProtectedHeader, errors, jwtVerify } = await import(pathToFileURL(process.env.LRA_JOSE));

const LEEWAY = 5;
const LIFE = 60;
const CALL = "urn:langchain-runtime-authz:call";
const GRANT = "urn:langchain-runtime-authz:grant";

class Refused extends Error {}

function demand(holds, code) {
  if (!holds) throw new Refused(code);
}

// Steps 1 to 3: the token.
async function verified(token, jwks, check) {
  demand(token.split(".").every((part) => Buffer.from(part, "base64url").toString("base64url") === part), "credential_invalid");
  const { payload, protectedHeader } = await jwtVerify(token, createLocalJWKSet(jwks), {
    algorithms: ["ES256", "EdDSA"],
    issuer: check.issuer,
    audience: check.audience,
    clockTolerance: LEEWAY,
    currentDate: new Date(check.now * 1000),
    requiredClaims: ["exp", "iat"],
  });
  demand(Object.keys(protectedHeader).sort().join() === "alg,kid,typ", "credential_invalid");
  demand(protectedHeader.typ === "runtime-authz+jwt", "credential_invalid");
  const { act, aud, authorization_details: details, exp, iat, task } = payload;
  for (const name of ["sub", "sub_type", "aud", "jti", "txn", "client_id", "tenant"])
    demand(typeof payload[name] === "string" && payload[name] !== "", "credential_invalid");
  demand(aud === check.audience, "audience");
  demand(act?.sub === payload.client_id && Number.isInteger(task?.epoch), "credential_invalid");
  demand(Array.isArray(details) && details.length > 0, "credential_invalid");
  demand(0 < exp - iat && exp - iat <= LIFE + LEEWAY, "credential_invalid");
  demand(iat <= check.now + LEEWAY, "credential_not_yet_valid");
  demand(payload.tenant === check.tenant, "credential_tenant");
  return details;
}

// Steps 4 to 6: the call.
function checkCall(details, { tool, args, step, accept }) {
  const calls = details.filter((detail) => detail.type === CALL);
  const permitted = details.some(
    (detail) => detail.type === GRANT && detail.actions?.includes("tools/call") && detail.identifier === tool,
  );
  demand(permitted && calls.every((call) => call.identifier === tool), "credential_tool");
  demand(calls.length === 1, "credential_call");
  const [call] = calls;
  demand(step === null || call.step === step, "credential_call");
  const approved = call.approved === true && accept?.includes("approved");
  demand(accept === null || approved || accept.includes(call.standing), "credential_call");
  if (call.arguments_digest !== undefined) {
    const given = Object.fromEntries(Object.entries(args).filter(([, value]) => value !== null));
    demand(readings(given).some((all) => digest(call.salt, "arguments", all) === call.arguments_digest), "credential_call");
    return;
  }
  const held = call.argument_digests ?? call.arguments;
  for (const [name, value] of Object.entries(args)) {
    demand(Object.hasOwn(held, name), "credential_call");
    const same = call.argument_digests
      ? (read) => digest(call.salt, name, read) === held[name]
      : (read) => canonical(read) === canonical(trimmed(held[name]));
    demand(readings(value).some(same), "credential_call");
  }
}

// A text may stand for the number that the token holds.
function readings(value) {
  const decimal = (text) => (/^-?\d{1,15}(\.\d{1,10})?$/.test(text) ? Number(text) : text);
  return [trimmed(value), trimmed(value, decimal)];
}

function trimmed(value, read = (text) => text) {
  if (typeof value === "string") return read(value.trim().replace(/^(\d{4}-\d\d-\d\dT[\d:.]{5,18})\+00:00$/, "$1Z"));
  if (Array.isArray(value)) return value.map((item) => trimmed(item, read));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, held]) => [name, trimmed(held, read)]));
}

// RFC 8785: JavaScript's own JSON with the members in the order of their UTF-16 units.
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join()}}`;
}

// RFC 9901 §4.2.3
function digest(salt, name, value) {
  const disclosure = Buffer.from(canonical([salt, name, value])).toString("base64url");
  return createHash("sha256").update(disclosure).digest("base64url");
}

function codeOf(error) {
  if (error instanceof Refused) return error.message;
  if (error instanceof errors.JWTExpired) return "credential_expired";
  if (error instanceof errors.JWTClaimValidationFailed && error.claim === "aud" && error.reason === "check_failed") return "audience";
  if (error instanceof errors.JWTClaimValidationFailed && error.claim === "nbf" && error.reason === "check_failed")
    return "credential_not_yet_valid";
  return error.code?.startsWith("ERR_JWKS") ? "credential_key" : "credential_invalid";
}

const verdicts = {};
for (const { name, token, jwks, check } of JSON.parse(readFileSync(process.argv[2], "utf8")).vectors) {
  try {
    checkCall(await verified(token, jwks, check), check);
    verdicts[name] = "accepted";
  } catch (error) {
    verdicts[name] = codeOf(error);
  }
}
console.log(JSON.stringify(verdicts));
