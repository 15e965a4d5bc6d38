"""Files that name other files: playlists, protocols in their places, and references in clips."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass

from tests.faults.elements import MATROSKA, MP4, Element, Syntax

# Every protocol by which FFmpeg opens something, and what is opened; the two places are a file's
# path and the loopback's name and port.
PROTOCOLS = (
    "{file}",
    "file:{file}",
    "file://{file}",
    "http://{port}/clip.ts",
    "https://{port}/clip.ts",
    "httpproxy://{port}/clip.ts",
    "icecast://{port}/clip",
    "rtmp://{port}/app/clip",
    "rtsp://{port}/clip",
    "rtp://{port}",
    "srtp://{port}",
    "udp://{port}",
    "tcp://{port}",
    "tls://{port}",
    "ftp://{port}/clip.ts",
    "gopher://{port}/clip.ts",
    "mmsh://{port}/clip.ts",
    "sctp://{port}",
    "unix:{file}",
    "concat:{file}|{file}",
    "concatf:{file}",
    "subfile,,start,0,end,64,,:{file}",
    "crypto:{file}",
    "crypto+http://{port}/clip.ts",
    "hls+http://{port}/list.m3u8",
    "cache:{file}",
    "async:{file}",
    "tee:{file}",
    "md5:{file}",
    "ipfs://{port}",
    "data:text/plain;base64,{data}",
    "pipe:0",
    "fd:",
)
NESTED = ("crypto:concat:{file}|http://{port}/a", "async:cache:subfile,,start,0,end,9,,:{file}")

_HLS = "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:10\n"
_HLS_END = "#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n"
# Playlists by the name of their kind; {0} is what they name.
PLAYLISTS = {
    "hls": _HLS + _HLS_END,
    "hls of lists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{0}\n"
    '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="{0}"\n',
    "hls map": _HLS + '#EXT-X-MAP:URI="{0}",BYTERANGE="9@0"\n' + _HLS_END,
    "hls key": _HLS + '#EXT-X-KEY:METHOD=AES-128,URI="{0}",IV=0x0\n' + _HLS_END,
    "dash": '<?xml version="1.0"?><MPD type="static" xmlns="urn:mpeg:dash:schema:mpd:2011">'
    '<Period><AdaptationSet contentType="video"><Representation id="1"><BaseURL>{0}</BaseURL>'
    '<SegmentList><Initialization sourceURL="{0}"/><SegmentURL media="{0}"/></SegmentList>'
    "</Representation></AdaptationSet></Period></MPD>",
    "dash xlink": '<MPD xmlns:xlink="http://www.w3.org/1999/xlink">'
    '<Period xlink:href="{0}" xlink:actuate="onLoad"/></MPD>',
    "ffconcat": "ffconcat version 1.0\nfile '{0}'\noption safe 0\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={0}\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{0}\n"
    "m=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "asx": '<asx version="3.0"><entry><ref href="{0}"/></entry></asx>',
    "asf reference": "[Reference]\r\nRef1={0}\r\nRef2={0}\r\n",
    "ram": "{0}\n",
    "pls": "[playlist]\nFile1={0}\nNumberOfEntries=1\n",
    "xspf": '<?xml version="1.0"?><playlist version="1"><trackList><track><location>{0}</location>'
    "</track></trackList></playlist>",
    "smil": '<smil><body><video src="{0}"/></body></smil>',
    "cpl": '<?xml version="1.0"?><CompositionPlaylist><Id>{0}</Id></CompositionPlaylist>',
    "internet shortcut": "[InternetShortcut]\nURL={0}\n",
    "avisynth": 'DirectShowSource("{0}")\n',
    "svg": '<svg xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="{0}"/></svg>',
    "entity": '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "{0}">]><svg>&b;</svg>',
    "mvg": "push graphic-context\nimage over 0,0 0,0 '{0}'\npop graphic-context\n",
    "postscript": "%!PS-Adobe-3.0 EPSF-3.0\n({0}) run\n",
}


@dataclass(frozen=True)
class Places:
    """Where nothing is to be opened.

    Attributes:
        file: A file's path.
        port: Where a server listens, as ``127.0.0.1:9``.
    """

    file: str
    port: str

    def fill(self, text: str) -> str:
        """A protocol's line with both in their places."""
        data = base64.b64encode((_HLS + _HLS_END).format(self.file).encode()).decode()
        return text.format(file=self.file, port=self.port, data=data)


def texts(places: Places) -> Iterator[tuple[str, bytes]]:
    """Every kind of playlist, every protocol, and playlists of playlists, by name."""
    named = places.fill("http://{port}/clip.ts")
    for kind, text in PLAYLISTS.items():
        for place in (named, places.file):
            yield f"{kind} of {place[:4]}", text.format(place).encode()
    for number, protocol in enumerate([*PROTOCOLS, *NESTED]):
        target = places.fill(protocol)
        for kind in ("ram", "hls", "hls key", "ffconcat", "dash"):
            yield f"{kind} protocol {number}", PLAYLISTS[kind].format(target).encode()
    inner = base64.b64encode((_HLS + _HLS_END).format(named).encode()).decode()
    for kind in ("hls", "hls of lists", "hls map", "ffconcat", "dash"):
        listed = PLAYLISTS[kind].format(f"data:application/x-mpegurl;base64,{inner}")
        yield f"{kind} of a list", listed.encode()
        yield f"{kind} after a mark", b"\xef\xbb\xbf\n" + listed.encode()
        yield f"{kind} behind ID3", b"ID3\4\0\0\0\0\0\x0aTIT2\0\0\0\0\0\0" + listed.encode()
        yield f"{kind} behind MPEG", b"\0\0\1\xb3" + listed.encode()


def disguised(places: Places) -> Iterator[tuple[str, bytes]]:
    """Playlists behind the first bytes of clips and pictures that are decoded."""
    playlist = (_HLS + _HLS_END).format(places.fill("http://{port}/clip.ts")).encode()
    fronts = {
        "ASF": b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel",
        "AVI": b"RIFF\xff\0\0\0AVI ",
        "BMP": b"BM",
        "FLV": b"FLV\1\5\0\0\0\x09\0\0\0\0",
        "GIF": b"GIF89a",
        "JPEG": b"\xff\xd8\xff\xe0",
        "MP4": b"\0\0\0\x18ftypisom\0\0\0\0isomavc1",
        "Matroska": b"\x1aE\xdf\xa3\x80",
        "MPEG-PS": b"\0\0\1\xba",
        "MPEG-TS": (b"G" + bytes(187)) * 5,
        "PNG": b"\x89PNG\r\n\x1a\n",
        "TIFF": b"II*\0\x08\0\0\0",
        "WebP": b"RIFF\xff\0\0\0WEBP",
    }
    for kind, front in fronts.items():
        yield f"playlist as {kind}", front + playlist
    yield "reference movie", _box(b"moov", _box(b"rmra", _box(b"rmda", _reference(places))))
    yield "RealMedia", b".RMF\0\0\0\x12\0\1\0\0\0\0\0\0\0\0" + places.file.encode()
    yield "Blu-ray list", b"MPLS0200" + bytes(32) + places.file.encode()
    yield "DVD menu", b"DVDVIDEO-VMG" + bytes(32) + places.file.encode()
    yield "Flash", b"FWS\x09" + bytes(16) + places.fill("http://{port}/a.swf").encode()
    yield "linked segments", b"\x1aE\xdf\xa3\x80" + _segment([_links(places)])


def with_references(clips: dict[str, bytes], places: Places) -> Iterator[tuple[str, bytes]]:
    """Whole clips that name other files beside.

    Args:
        clips: Real clips by their containers: ``MP4``, ``Matroska``, ``AVI``, ``ASF``, ``FLV``.
        places: What they name.
    """
    mp4, address = clips["MP4"], places.fill("http://{port}/a").encode()
    outside = _box(b"url ", bytes(4) + address + b"\0")
    yield "MP4 of a URL", replaced(mp4, MP4, b"dref", bytes(4) + b"\0\0\0\1" + outside)
    alias = _box(b"alis", bytes(4) + _alias(places.file))
    yield "MP4 of an alias", replaced(mp4, MP4, b"dref", bytes(4) + b"\0\0\0\1" + alias)
    yield "MP4 with a reference movie", mp4 + _box(b"rmra", _box(b"rmda", _reference(places)))
    head, segment = MATROSKA.parse(clips["Matroska"])
    linked = Element(segment.name, MATROSKA.write(_links(places)) + segment.body)
    yield "Matroska of segments", MATROSKA.write(head) + MATROSKA.write(linked)
    playlist = (_HLS + _HLS_END).format(places.fill("http://{port}/clip.ts")).encode()
    yield "AVI with subtitles", _with_subtitles(clips["AVI"], playlist)
    command = places.fill("http://{port}/").encode("utf-16-le") + b"\0\0"
    yield "ASF with a command", _with_command(clips["ASF"], command)
    page = clips["FLV"].replace(b"encoder", b"pageUrl").replace(b"Lavf", b"http")
    yield "FLV of a page", page


def replaced(data: bytes, syntax: Syntax, name: bytes, body: bytes) -> bytes:
    """A file with another body in every element of one name."""
    written = []
    for element in syntax.parse(data):
        front = element.body[: syntax.nested.get(element.name, 0)]
        new = element.body
        if element.name == name:
            new = body
        elif element.name in syntax.nested:
            new = front + replaced(element.body[len(front) :], syntax, name, body)
        written.append(syntax.write(Element(element.name, new)))
    return b"".join(written)


def _box(name: bytes, body: bytes) -> bytes:
    return MP4.write(Element(name, body))


def _reference(places: Places) -> bytes:
    address = places.fill("http://{port}/a.mov").encode()
    return _box(b"rdrf", bytes(4) + b"url " + len(address).to_bytes(4, "big") + address)


def _alias(path: str) -> bytes:
    """A Macintosh alias record: a volume, a name, and the whole path as an item of type 18."""
    name = path.rpartition("/")[2].encode()[:63]
    fixed = bytes(6) + b"\0\2" + bytes(2) + b"\1v".ljust(28, b"\0") + bytes(12)
    fixed += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + bytes(20)
    items = [(2, b"v:" + path.replace("/", ":").encode()), (18, path.encode()), (19, b"/")]
    for kind, value in items:
        fixed += kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value
        fixed += bytes(len(value) % 2)
    return fixed + b"\xff\xff\0\0"


def _links(places: Places) -> Element:
    """Matroska's Info: this segment, the next one and the one before, by number and by file."""
    name = places.file.encode()
    fields = [
        (b"\x73\xa4", bytes(16)),
        (b"\x3e\xb9\x23", b"\1" * 16),
        (b"\x3c\xb9\x23", b"\2" * 16),
    ]
    fields += [(b"\x73\x84", name), (b"\x3e\x83\xbb", name), (b"\x3c\x83\xab", name)]
    body = b"".join(MATROSKA.write(Element(*each)) for each in fields)
    return Element(b"\x15\x49\xa9\x66", body)


def _segment(elements: list[Element]) -> bytes:
    body = b"".join(MATROSKA.write(element) for element in elements)
    return MATROSKA.write(Element(b"\x18\x53\x80\x67", body))


def _with_subtitles(avi: bytes, playlist: bytes) -> bytes:
    """An AVI with a stream of subtitles, for which FFmpeg has a demuxer within its demuxer."""
    size = len(playlist)
    text = b"GAB2\0\2\0" + bytes(4) + b"\4\0" + size.to_bytes(4, "little") + playlist
    chunk = b"01tx" + len(text).to_bytes(4, "little") + text + bytes(len(text) % 2)
    header = b"strh" + (56).to_bytes(4, "little") + b"txts" + bytes(16)
    header += b"\1\0\0\0\x19\0\0\0" + bytes(28) + b"strf" + bytes(4)
    stream = b"LIST" + (len(header) + 4).to_bytes(4, "little") + b"strl" + header
    return _inserted(_inserted(avi, b"movi", chunk), b"hdrl", stream, at_end=True)


def _inserted(avi: bytes, name: bytes, chunk: bytes, *, at_end: bool = False) -> bytes:
    """An AVI with one more chunk in a list; all sizes are made right, but for the index's."""
    start = avi.index(b"LIST" + avi[avi.index(name) - 4 : avi.index(name)] + name) + 12
    size = int.from_bytes(avi[start - 8 : start - 4], "little")
    place = start - 4 + size if at_end else start
    avi = avi[: start - 8] + (size + len(chunk)).to_bytes(4, "little") + avi[start - 4 :]
    whole = (int.from_bytes(avi[4:8], "little") + len(chunk)).to_bytes(4, "little")
    return avi[:4] + whole + avi[8:place] + chunk + avi[place:]


def _with_command(asf: bytes, address: bytes) -> bytes:
    """An ASF whose header has a script command that has players open an address."""
    kind = "URL".encode("utf-16-le")
    body = bytes(16) + b"\1\0\1\0" + b"\3\0" + kind + bytes(6)
    body += (len(address) // 2).to_bytes(2, "little") + address
    guid = bytes.fromhex("301afb1e620bd011a39b00a0c90348f6")
    command = guid + (24 + len(body)).to_bytes(8, "little") + body
    size = int.from_bytes(asf[16:24], "little") + len(command)
    count = int.from_bytes(asf[24:28], "little") + 1
    head = asf[:16] + size.to_bytes(8, "little") + count.to_bytes(4, "little")
    return head + asf[28:30] + command + asf[30:]
