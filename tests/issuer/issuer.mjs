// Owns: an issuer of tokens that the tests' Kafka believes: the client credentials grant over TLS, by a certified library.
// Promises: prints its port in a line once it listens, and then a line for each token that it has given; writes the key
// that its tokens are signed with, as a JWKS, before that. Keeps nothing.
//
// Usage: node issuer.mjs CERT_FILE KEY_FILE JWKS_FILE AUDIENCE SECONDS CLIENT=SECRET...
import { generateKeyPairSync } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:https";
import { Provider } from "oidc-provider";

const [cert, key, jwks, audience, seconds, ...clients] = process.argv.slice(2);
const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
const named = (half) => ({ ...half.export({ format: "jwk" }), kid: "tests", use: "sig", alg: "ES256" });
writeFileSync(jwks, JSON.stringify({ keys: [named(publicKey)] }));

const provider = new Provider("https://issuer.tests", {
    jwks: { keys: [named(privateKey)] },
    cookies: { keys: ["no browser comes here"] },
    clients: clients.map((pair) => {
        const [id, secret] = pair.split("=");
        return {
            client_id: id,
            client_secret: secret,
            grant_types: ["client_credentials"],
            redirect_uris: [],
            response_types: [],
            id_token_signed_response_alg: "ES256",
        };
    }),
    features: {
        devInteractions: { enabled: false },
        clientCredentials: { enabled: true },
        resourceIndicators: {
            enabled: true,
            defaultResource: () => "urn:kafka",
            getResourceServerInfo: () => ({
                scope: "calls:write",
                audience,
                accessTokenTTL: Number(seconds),
                accessTokenFormat: "jwt",
                jwt: { sign: { alg: "ES256" } },
            }),
        },
    },
});
provider.on("grant.success", (ctx) => console.log(`gave ${ctx.oidc.client.clientId} a token for ${ctx.body.scope}`));
provider.on("server_error", (_ctx, error) => console.error(error));

const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, provider.callback());
server.listen(0, "127.0.0.1", () => console.log(`listens on ${server.address().port}`));
