#!/usr/bin/env python3
"""Imports a HAR file into the developer tools of a headless Chromium and compares what they have with it.

Usage: import.py PORT FILE.har

PORT is Chromium's --remote-debugging-port. Needs the package websockets.
"""
import asyncio
import json
import sys
import urllib.request

import websockets

PANEL = "devtools://devtools/bundled/devtools_app.html?panel=network"

# What the panel's button does, and then what the panel has.
IMPORT = """(async text => {
  const ui = await import('devtools://devtools/bundled/ui/legacy/legacy.js');
  const network = await import('devtools://devtools/bundled/panels/network/network.js');
  const logs = await import('devtools://devtools/bundled/models/logs/logs.js');
  await ui.ViewManager.ViewManager.instance().showView('network');
  const panel = network.NetworkPanel.NetworkPanel.instance();
  await panel.networkLogView.onLoadFromFile(new File([text], 'x.har'));
  return Promise.all(logs.NetworkLog.NetworkLog.instance().requests().map(async request => {
    const content = await request.requestContentData();
    return {
      method: request.requestMethod,
      url: request.url(),
      status: request.statusCode,
      requestHeaders: request.requestHeaders().length,
      responseHeaders: request.responseHeaders.length,
      posted: await request.requestFormData() ?? '',
      content: content.error ?? (content.isTextContent ? content.text : content.base64),
      // Those of the same time may change places.
      messages: request.frames().map(frame => frame.text).sort(),
    };
  }));
})"""


def expected(entry):
    """What the panel has to have of an entry."""
    request, response = entry["request"], entry["response"]
    return {
        "method": request["method"],
        "url": request["url"],
        "status": response["status"],
        "requestHeaders": len(request["headers"]),
        "responseHeaders": len(response["headers"]),
        "posted": request.get("postData", {}).get("text", ""),
        "content": response["content"].get("text", ""),
        "messages": sorted(message["data"] for message in entry.get("_webSocketMessages", [])),
    }


async def shown(port, text):
    """What the panel has of a HAR file."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?{PANEL}", method="PUT")
    target = json.load(urllib.request.urlopen(request))
    async with websockets.connect(target["webSocketDebuggerUrl"], max_size=None) as socket:

        async def evaluate(number, expression):
            parameters = {"expression": expression, "awaitPromise": True, "returnByValue": True}
            call = {"id": number, "method": "Runtime.evaluate", "params": parameters}
            await socket.send(json.dumps(call))
            while (answer := json.loads(await socket.recv())).get("id") != number:
                pass
            if "exceptionDetails" in answer["result"]:
                sys.exit(json.dumps(answer["result"]["exceptionDetails"], indent=1))
            return answer["result"]["result"].get("value")

        while not await evaluate(1, "Boolean(globalThis.UI?.panels)"):
            await asyncio.sleep(0.1)
        return await evaluate(2, f"{IMPORT}({json.dumps(text)})")


def main(port, path):
    """Imports and compares."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    entries = [expected(entry) for entry in json.loads(text)["log"]["entries"]]
    found = asyncio.run(shown(port, text))
    print(f"{path}: {len(entries)} entries, {len(found)} requests in the panel")
    different = 0
    for entry, request in zip(entries, found):
        for field, value in entry.items():
            if request[field] != value:
                different += 1
                print(f"{entry['url']}: {field}: {request[field]!r:.200} instead of {value!r:.200}")
    sys.exit(different > 0 or len(entries) != len(found))


main(sys.argv[1], sys.argv[2])
