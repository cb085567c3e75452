// Drives the API with the unmodified `platformsh-client`, as its users do: lists, backs up, waits,
// reads the log, restores. Prints one JSON object; any failure ends it with a status other than 0.
//
// The release on npm does not know that it runs in Node.js and then cannot exchange an API token by
// itself, so that one request is made here, byte for byte as the library's source makes it.
const { default: Client } = require("platformsh-client");

async function main() {
  const [url, token, project] = process.argv.slice(2);
  const exchanged = await fetch(`${url}/oauth2/token`, {
    method: "POST",
    headers: {
      Authorization: `Basic ${Buffer.from("platform-cli:").toString("base64")}`,
      "Content-Type": "application/json",
    },
    body: JSON.stringify({ grant_type: "api_token", api_token: token }),
  });
  const { access_token } = await exchanged.json();
  const client = new Client({
    access_token,
    api_url: url,
    base_url: url,
    account_url: url,
    authentication_url: url,
    authorization: `${url}/oauth2/authorize`,
    client_id: "platform-cli",
    redirect_uri: url,
  });
  const me = await client.getAccountInfo();
  const environments = await client.getEnvironments(project);
  const environment = environments.find((e) => e.id === "main");
  const backup = await environment.backup(true);
  await backup.wait(undefined, undefined, 0.2);
  const log = await backup.getLogAt(0, 0);
  const backups = await client.getEnvironmentBackups(project, "main");
  const restored = await backups[0].restore({ environment_name: "main", restore_code: false });
  await restored.wait(undefined, undefined, 0.2);
  let refusal = null;
  try {
    await client.getEnvironment(project, "nowhere");
  } catch (error) {
    refusal = error.code;
  }
  console.log(
    JSON.stringify({
      user: me.username,
      projects: (me.projects || []).map((p) => p.id),
      environments: environments.map((e) => e.id),
      backup: { result: backup.result, name: backup.payload.backup_name, log },
      backups: backups.map((b) => ({ id: b.id, safe: b.safe, restorable: b.restorable })),
      restored: restored.result,
      refusal,
    }),
  );
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
