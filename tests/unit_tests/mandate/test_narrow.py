"""The words compiler reads no more into an order than it says. Each case has a twin that still orders."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile

S, N = {"type": "string"}, {"type": "number"}


def tool(effect: str, intent: str = "", text: str = "", when: str = "", optional: str = "", **arguments: Any) -> tuple[ToolProfile, dict[str, Any]]:
    """Return a profile and a schema. An argument is a kind, or a list of choices."""
    kinds = {n: "value" if isinstance(k, list) else k for n, k in arguments.items()}
    properties = {n: {"type": "string", "enum": k} if isinstance(k, list) else N if k == "amount" else S for n, k in arguments.items()}
    properties |= dict.fromkeys((*text.split(), *when.split()), S)
    profile = ToolProfile(effect=effect, critical=kinds, text=tuple(text.split()), when=tuple(when.split()), intent=tuple(filter(None, intent.split("|"))))  # type: ignore[arg-type]
    return profile, {"properties": properties, "required": [n for n in properties if n not in optional.split()]}


TOOLS = {
    "read_report": tool("read", path="object"),
    "find_member": tool("read", member="principal"),
    "list_rooms": tool("read"),
    "erase_disk": tool("delete", "erase|wipe", disk="object"),
    "tip": tool("pay", "tip", waiter="principal", amount="amount"),
    "feed": tool("write", "feed", animal="object", portions="amount"),
    "seal_port": tool("admin", "seal", ship="object", port="amount"),
    "scrap_engine": tool("delete", "scrap", engine_id="object"),
    "repay_claim": tool("pay", "repay", claim_id="object", amount="amount", optional="amount"),
    "brief_crew": tool("send", "brief|tell", crew="principal", text="text"),
    "ping_nurse": tool("send", nurse="principal", text="note", optional="note"),
    "open_case": tool("write", "open", client="principal", text="title"),
    "create_ward": tool("write", "create|open", name="name"),
    "open_gate": tool("write", gate="object"),
    "open_claim": tool("write", "open|start", policy_id="object"),
    "hire_van": tool("pay", "hire|get", depot="object"),
    "discard_draft": tool("delete", draft="object"),
    "set_wage": tool("admin", "set|change|hike", worker="principal", wage="amount"),
    "staff_shift": tool("admin", "staff", shift="object", guards="amount"),
    "tune_oven": tool("write", "tune|change", oven="object", heat="amount"),
    "tear_page": tool("delete", "tear", atlas="object", page_number="amount"),
    "seat_guests": tool("write", "seat", inn="object", number_of_guests="amount"),
    "raze": tool("delete", "raze", barn="object"),
    "bank_cash": tool("pay", "bank", sum="amount", from_vault=["east", "west"], to_vault=["east", "west"], optional="from_vault to_vault"),
    "advance_build": tool("admin", "advance", build="object", from_stage=["beta", "live"]),
    "move_job": tool("write", "move|mark", job="object", stage=["queued", "done"]),
    "top_up": tool("pay", "top up|fund", account="principal", amount="amount"),
    "call_off": tool("delete", "scratch|nix", race="object", when="date", optional="date"),
    "postpone_race": tool("write", race="object", when="day"),
    "move_funds": tool("pay", "move", account="principal", amount="amount", when="day"),
    "eject_tape_reel": tool("delete", reel_id="object"),
    "polish_car": tool("write", "polish", car="object"),
    "polish_boat": tool("write", "polish", boat="object"),
    "release_scores": tool("write", "release", course="object"),
    "evict": tool("admin", "evict", tenant="principal", optional="tenant"),
    "convey_log": tool("send", "convey", log="object", to="principal", optional="log"),
    "loan_book": tool("write", "loan", book="object", reader="principal"),
    "reroute_bus": tool("write", "reroute", bus="object", street="place"),
    "retitle_page": tool("write", "retitle", page="object", new_title="name"),
    "switch_tier": tool("admin", "switch", plan="object", tier="value"),
    "test_pump": tool("read", "test", pump="object"),
    "prime_pump": tool("admin", "prime", pump="object"),
    "drain_pump": tool("write", "drain", pump="object"),
    "pack_item": tool("write", "pack", item="name", trunk="object"),
    "hang_sign": tool("write", "hang|place", sign="object", wall="place", size=["small", "large"]),
    "grant_visa": tool("admin", "approve", visa="object"),
    "bind_novel_draft": tool("write", draft_id="object"),
    "hedge": tool("pay", "hedge", symbol="object", amount="amount"),
    "restock": tool("pay", "restock", product="object", quantity="amount", supplier="principal", optional="supplier"),
    "inform_doctor": tool("send", "inform", doctor="principal", text="text", optional="text"),
    "grease": tool("pay", "grease", clerk="principal", amount="amount", text="reason"),
    "shoo_guests": tool("admin", tenant="principal", optional="tenant"),
    "shelve_email": tool("write", "shelve", email_id="object", rack="place"),
    "shred_message": tool("delete", "shred", message="object"),
    "copy_crate": tool("write", source="object", destination="object"),
    "hire_guide": tool("pay", "hire", guide="principal", hours="amount"),
    "rebate": tool("pay", order="object", percent="amount"),
    "stake": tool("pay", player="principal", amount_btc="amount"),
    "gift_points": tool("pay", "gift", player="principal", amount="amount"),
    "swap_miles": tool("pay", "swap", player="principal", miles_amount="amount"),
    "credit_hour": tool("pay", "credit", player="principal", amount="amount"),
    "gild_item": tool("pay", "gild", item="object", amount="amount"),
    "beam_money": tool("pay", payee="principal", amount="amount"),
    "dole_cash": tool("pay", payee="principal", amount="amount"),
    "dole_prize": tool("pay", payee="principal", amount="amount"),
    "lend_usd": tool("pay", "lend", debtor="principal", amount="amount"),
    "chill": tool("admin", "set", cellar="object", chill_kelvin="amount"),
    "set_fee": tool("admin", "set", court="object", new_fee_eur="amount"),
    "lower_toll": tool("admin", "lower|cut", bridge="object", amount="amount"),
    "trim_quota": tool("admin", "set", desk="object", quota_delta="amount"),
    "raise_levy": tool("admin", port="object", levy="amount"),
    "disband": tool("admin", crew="principal"),
    "suspend_badge": tool("admin", "suspend|lend", worker="principal"),
    "cut_scene": tool("delete", "cut", film_id="object"),
    "cancel_lunch": tool("delete", "cancel", guest="principal"),
    "stock_bolts": tool("pay", "stock", sku="object", quantity="amount"),
    "ship_build": tool("admin", "launch|upgrade|revert", build="object", version="value"),
    "plan_picnic": tool("write", "plan", title="name"),
    "plan_feast": tool("write", "plan", host_name="name"),
    "print_stamp": tool("write", "print", printer_name="object"),
    "make_standing_gift": tool("pay", "set up|make|change|double|return", payee="principal", amount="amount", interval=["weekly", "monthly"]),
    "pin_photo": tool("write", "pin|change|add", photo="object", album="object"),
    "unpin_photo": tool("delete", "unpin", photo="object", album="object"),
    "seat_guest": tool("write", "seat", guest="principal", feast="object"),
    "haul_crate": tool("write", "haul", crate="object", carrier=["dhl", "ups"], optional="carrier"),
    "edit_site_phase": tool("write", "edit phase", site="object", phase=["early", "built"]),
    "halt_belt": tool("delete", "stop|hold|put a hold on", belt="object"),
    "bin_review": tool("delete", review_id="object"),
    "mail_findings": tool("send", "mail findings", sample_id="object", reader="principal"),
    "set_motto": tool("write", "set motto", text="motto", flyer="object"),
    "set_gain": tool("write", "set gain", gain="amount", horn="object", optional="horn"),
    "wire": tool("write", "wire", **{f"port_{c}": "object" for c in "abcdefghijklmnopqrst"}),
}  # fmt: skip


def orders(text: str) -> list[str]:
    mandate = compile_words([text], {n: p for n, (p, _) in TOOLS.items()}, {n: s for n, (_, s) in TOOLS.items()}).mandate
    steps = mandate.steps if mandate else ()
    return [" ".join([s.tool, *(str(getattr(a, "value", getattr(a, "quote", a))) for a in s.args.values())]) for s in steps]


@pytest.mark.parametrize(("text", "expected"), [
    # An order to read is a call of a read tool, or it voids the turn.
    ("Read the report a.txt, then tip Kim 5 EUR", ["tip Kim 5"]),
    ("List the rooms and erase the disk D-7", ["erase_disk D-7"]),
    *((text, []) for text in (
        "Tip Kim 5 EUR. Find peace.", "Find Kim, then tip Lee 5 EUR", "Read the room and erase the disk D-7", "Get a warrant and erase the disk D-7",
        "List reasons, then erase the disk D-7", "View the sky. Erase the disk D-7.", "Tip Kim 5 EUR. Search elsewhere.", "Show Kim a.txt and tip Lee 5 EUR",
        "Find the member of the board, then erase the disk D-7", "Get the report. Tip Kim 5 EUR.",
    )),
    # A number before a noun is how many, and names nothing.
    ("Seat 3 guests of the inn I-1", ["seat_guests I-1 3"]), ("Tear page 3 of the atlas A-1", ["tear_page A-1 3"]),
    *((text, []) for text in ("Tear 3 pages of the atlas A-1", "Tear 3 of the atlas A-1", "Tear 3 of A-1", "Tear the 3 pages of A-1")),
    ("Feed the animal Rex 3 portions", ["feed Rex 3"]), ("Scrap engine 12", ["scrap_engine 12"]), ("Repay claim 12 45 EUR", ["repay_claim 12 45"]),
    ("Scrap engines 12 and 13", ["scrap_engine 12", "scrap_engine 13"]), ("Seal port 4 on the ship Aida", ["seal_port Aida 4"]),
    *((text, []) for text in (
        "Scrap 2 engines", "Could you scrap 3 engines?", "Scrap the 12 engines", "Scrap the 2026 engine", "Scrap 2", "Repay my 2 claims", "Repay 2 of 3 claims",
        "Repay claim 5 of 12", "Repay claim 5 for 12", "Seal 4 ports on the ship Aida", "Feed 2 animals 3 portions", "Feed the 2 animals 3 portions", "Scrap the Volvo engines",
    )),
    # An order to tell is complete with what is told.
    ("Brief Kim 'all is well' and scrap engine 12", ["brief_crew Kim all is well", "scrap_engine 12"]), ("Ping the nurse Kim 'hi'", ["ping_nurse Kim hi"]),
    *((text, []) for text in (
        "Brief Kim, scrap engine 12", "Tell Kim, then tip Lee 5 EUR", "Brief Kim\n- scrap engine 12", "Tell Kim. Scrap engine 12.", "Scrap engine 12 and brief Kim",
        "Ping Kim, scrap engine 12", "Ping Kim\n\nScrap engine 12", "Open a case for Kim", "Open the case of Kim",
    )),
    # A verb that may only look makes nothing of what is there.
    ("Open a ward called East", ["create_ward East"]), ("Open the gate G-7", ["open_gate G-7"]), ("Hire the van depot D-4", ["hire_van D-4"]),
    *((text, []) for text in (
        "Open the ward East", "Open ward East", "Open policy P-12", "Open the policy P-12", "Get the van at the depot D-4", "Get the depot D-4", "Load the ward East",
        "Browse the wards of East", "Open depot D-4", "Get rid of the draft D-4",
    )),
    # A new value stands behind "to", or its noun counts it.
    ("Change the wage of Kim to 50 EUR", ["set_wage Kim 50"]), ("Tune the heat of the oven O-3 to 20", ["tune_oven O-3 20"]), ("Staff the shift S-2 to 5 guards", ["staff_shift S-2 5"]),
    *((text, []) for text in (
        "Staff the shift S-2 by 5 guards", "Staff the shift S-2 plus 5 guards", "Staff the shift S-2 for 5 guards", "Staff the shift S-2 with 5 guards", "Change the wage of Kim by 50 EUR",
        "Change the wage of Kim of 50 EUR", "Change the wage of Kim. The wage is 50 EUR.", "Change the 50 EUR wage of Kim", "Hike the wage of Kim 50 EUR", "Change the wage 50 EUR of Kim",
        "Tune the oven O-3 to 20 percent", "Tune the heat 20 of the oven O-3", "Tune the oven O-3 by 20", "Tune the oven O-3 from 20",
    )),
    # An amount of money says "money", and no number does. Another tool with the verb may be meant.
    ("Beam 45 EUR to Kim", ["beam_money Kim 45"]), ("Beam 45 to Kim", []), ("Dole 45 EUR to Kim", []), ("Dole Kim 45 EUR", []),
    # Money is not a number of something else, nor other money.
    ("Gild the item I-1 45 EUR", ["gild_item I-1 45"]), ("Gift Kim 45 EUR", []), ("Swap Kim 45 EUR", []), ("Credit Kim 45 EUR", []), ("Gift 45 to Kim", []),
    ("Set the fee of the court C-1 to 45 EUR", ["set_fee C-1 45"]), ("Set the chill of the cellar C-1 to 45", ["chill C-1 45"]), ("Lend Kim 45 USD", ["lend_usd Kim 45"]),
    *((text, []) for text in (
        "Hire 45 to Kim", "Stake 45 to Kim", "Rebate 45 for the order O-1", "Hire Kim 45 EUR", "Hire Kim with 45 EUR", "Hire Kim the hours 45 EUR", "Rebate the order O-1 45 EUR", "Rebate 45 EUR for the order O-1", "Stake Kim 45 EUR",
        "Set the chill of the cellar C-1 to 45 EUR", "Set the fee of the court C-1 to 45 USD", "Lend Kim 45 EUR",
    )),
    # Names joined by "and" may be one name, and a joined phrase has no role of its own.
    ("Raze 'North' and 'South'", ["raze North", "raze South"]), ("Tip Kim 5 EUR and Lee 6 EUR", ["tip Kim 5", "tip Lee 6"]),
    *((text, []) for text in (
        "Raze Salt and Pepper", "Raze the barn Salt and Pepper", "Raze Salt & Pepper", "Raze Salt, Pepper and Sons", "Raze salt and pepper", "Discard Rise and Fall", "Tip Salt and Pepper 5 EUR",
        "Repay claim 12 and the amount 45", "Seal Aida and port 4", "Change Kim and the wage to 50 EUR",
    )),
    # What it becomes is not by how much it changes.
    ("Hike the wage of Kim to 50 EUR", ["set_wage Kim 50"]), ("Raise the levy of the port P-1 to 50", ["raise_levy P-1 50"]),
    *((text, []) for text in ("Lower the toll of the bridge B-1 to 5", "Cut the toll of the bridge B-1 to 5 EUR", "Set the quota of the desk D-1 to 5")),
    ("Disband the crews Ana Lee and Bob Ray", ["disband Ana Lee", "disband Bob Ray"]),
    *((text, []) for text in ("Disband the crew Ernst Lee and Sons", "Disband the crew Ernst Lee and Co", "Disband the crew Ernst Lee & Sons", "Disband the crew Ernst Lee and Poe")),
    # What is "for" something may be a sample.
    *((text, []) for text in (
        "Tip Kim 5 EUR for instance", "For instance, tip Kim 5 EUR", "Tip Kim 5 EUR for practice", "Repay claim 12 45 EUR for simulation", "For testing purposes, raze the barn B-1",
    )),
    # Who pays is not paid, and what a thing comes from is not what it becomes.
    ("Bank 5 EUR from east", ["bank_cash 5 east"]), ("Bank 5 EUR from east to west", ["bank_cash 5 east west"]), ("Advance the build B-1 from beta", ["advance_build B-1 beta"]),
    *((text, []) for text in ("Advance the build B-1 to live", "Advance the build B-1 in live", "Advance the build B-1 from the beta", "Bank 5 EUR from east and west", "Move the job J-1 from queued to done")),
    ("Fund the account K-1 5 EUR", ["top_up K-1 5"]), ("Move the job J-1 to done", ["move_job J-1 done"]), ("Mark the job J-1 as done", ["move_job J-1 done"]),
    *((text, []) for text in (
        "Fund 5 EUR with the account K-1", "Fund 5 EUR of the account K-1", "Fund 5 EUR by the account K-1", "Fund 5 EUR from the account K-1", "Fund 5 EUR at the account K-1",
        "Move the job J-1 from done", "Mark the job J-1 of done", "Move the job J-1 for done", "Move the job J-1 by done",
    )),
    ("Restock 1 lamp", ["restock lamp 1"]), *((f"Restock 12 {word}", []) for word in ("late", "lamp", "arrives late")),  # "Order 12 late" is a report
    ("Restock 3 lamps", ["restock lamps 3"]), ("Restock 3 lamps to Kim", []), ("To Kim, restock 3 lamps", []), ("Of Kim, restock 3 lamps", []),
    # A word that narrows is no courtesy.
    ("Raze the barn B-1, thanks", ["raze B-1"]), ("Nix the race R-1", ["call_off R-1"]), ("Nix the race R-1 on 3 June 2027", ["call_off R-1 3 June 2027"]),
    ("Postpone the race R-1 to 3 June 2027", ["postpone_race R-1 3 June 2027"]), ("Move 5 EUR to the account K-1 on 3 June 2027", ["move_funds K-1 5 3 June 2027"]),
    ("Postpone the race R-1 on 3 June 2027", []),
    *((text, []) for text in (
        "Nix the race R-1 today", "Nix the race R-1 for me", "Nix a Derby race", "Raze a barn B-1", "Raze a North barn", "Raze an Oak", "Nix today's race R-1", "Tip Kim 5 EUR today",
    )),
    # A tool is meant by its own verb and all nouns of its name, or by its intent.
    ("Eject the tape reel 12", ["eject_tape_reel 12"]), ("release Math", ["release_scores Math"]), ("Approve the visa V-1", ["grant_visa V-1"]),
    *((text, []) for text in (
        "Eject the tape 12", "Eject the reel 12", "Eject the tape of the reel 12", "Remove the tape reel 12", "Eject the tape spool 12", "Bind the novel Emma", "Release the course Math",
    )),
    # The tool's own noun is what the call acts on, and an email is a message; a message may be no email.
    ("Copy the crate C-1 to K-2", ["copy_crate C-1 K-2"]), ("Shred the message M-1", ["shred_message M-1"]),
    *((text, []) for text in ("Copy the crate C-1 from K-2", "Copy to the crate C-1 K-2", "Shred the email M-1", "Shelve the letter M-1 to R-2", "Shelve the message M-1 to R-2", "Shelve the message board M-1 to R-2")),
    # "A payment of 45 EUR" is a new one, and sets nothing that is there.
    ("Set up a weekly standing gift of 25 EUR to Kim", ["make_standing_gift Kim 25 weekly"]),
    *((text, []) for text in (
        "Set up the weekly standing gift of 25 EUR to Kim", "Set up a standing gift of 25 EUR to Kim", "Set up a daily standing gift of 25 EUR to Kim",
        "Set up a weekly standing gift of 25 EUR of 60 EUR to Kim", "Set up a weekly standing gift of Kim of 25 EUR", "Set up a weekly basket of 25 EUR to Kim",
        *(f"{verb} a weekly standing gift of 25 EUR to Kim" for verb in ("Change", "Double", "Return")),
    )),
    # A noun before "of" tells whose the call ends, and a count of what. A label behind a value is of the next one.
    ("Suspend the badge of Ana Lee", ["suspend_badge Ana Lee"]), ("Cancel the lunch of a@x.org", ["cancel_lunch a@x.org"]),
    ("Cut the scene of F-1", ["cut_scene F-1"]), ("Cut a scene of F-1", []),  # one of many
    ("Stock 20 of S-1", ["stock_bolts S-1 20"]), ("Stock 20 units of S-1", ["stock_bolts S-1 20"]),
    ("Launch B-1 version 1.2", ["ship_build B-1 1.2"]), ("Upgrade B-1 to version 1.2", ["ship_build B-1 1.2"]),
    ("Upgrade B-1 version 1.2", []), ("Revert B-1 version 1.2", []),  # which one is there, or which one comes
    ('Plan a picnic "Lunch"', ["plan_picnic Lunch"]),
    *((text, []) for text in (
        "Cancel the lunch of Green Tea", "Suspend a badge of Ana Lee", "Cancel a lunch of a@x.org",
        "Lend the badge of Ana Lee", "Suspend the badge of Netflix", "Suspend the badge of web-3", "Stock 20 of S-1 and S-2", "Stock 20 of 30 S-1", "Stock 20 pounds of S-1", "Scrap 2 of E-1",
        "Launch B-1 build 1.2", "Launch version 1.2 of B-1 version 1.3", 'Plan the picnic "Lunch"', 'Plan a picnic for "Lunch"', 'Plan a picnic basket "Lunch"', 'Plan a feast "Lunch"', 'Print a stamp "Paid"',
    )),
    # A thing may have the name of an act, and what a tool is about may be of something else.
    ("Bin review R-1", ["bin_review R-1"]), ("Mail the findings of the sample S-1 to Kim", ["mail_findings S-1 Kim"]), ("Mail the findings for S-1 to Kim", ["mail_findings S-1 Kim"]),
    ("Set the gain of the horn H-1 to 6", ["set_gain 6 H-1"]), ("Suspend the badge of the worker W-3", ["suspend_badge W-3"]),
    *((text, []) for text in (
        "Bin the photo of review R-1", "Bin the review draft R-1", "Review R-1 and bin it", "Bin the reviews", "Bin the review", "Bin a review R-1", "Bin R-1 review", "Check R-1, bin the review R-1",
        "Mail the findings of the report S-1 to Kim", "Mail the findings of Lee to Kim", "Mail the finding of the sample S-1 to Kim", "Mail a finding for S-1 to Kim", "Mail the summary of the sample S-1 to Kim", "Mail the findings of samples to Kim", "Mail the findings for Lee to Kim",
        "Mail half the findings of S-1 to Kim", "Mail the sample S-1 of the findings to Kim", "Mail the findings of S-1 for Kim", "Set the gain of the room H-1 to 6",
        "Set the gain of the horn H-1 by 6", "Set the gain of H-1 to 6 of 10", "Suspend the badge of the door W-3",
    )),
    ("Set the motto of F-1 to 'Sale'", ["set_motto F-1 Sale"]),
    *((text, []) for text in (
        "Set the motto of F-1 to Sale", "Set the motto of F-1 by 'Sale'", "Set F-1 to 'Sale'", "Set the motto 'Old' of F-1 to 'New'", "Set the font of F-1 to 'Sale'",
        "Set the motto of F-1 to 'Sale' for Kim",
    )),
    # A tool that pins photos pins the photo that stands behind the verb, and the other one says where.
    ('Pin "Rio" to "Trip"', ["pin_photo Rio Trip"]), ('Unpin "Rio" from "Trip"', ["unpin_photo Rio Trip"]), ("Add A-1 to B-2", ["pin_photo A-1 B-2"]), ('Seat Ana Lee in "Gala"', ["seat_guest Ana Lee Gala"]),
    *((text, []) for text in (
        'Pin "Rio" "Trip"', 'Pin "Rio" to "Trip" or "Day"', 'Pin "Rio" from "Trip"', 'Pin "Rio" for "Trip"', 'Pin "Rio" with "Trip"', 'Pin "Rio" by "Trip" to "Day"', 'Pin to "Trip" "Rio"', 'Pin the frame of "Rio" to "Trip"', 'Pin "Rio" next to "Trip"',
        'Pin "Rio" to "Trip" to "Day"', 'Pin the album "Rio" to "Trip"', 'Change "Rio" to "Trip"', 'Unpin "Rio" to "Trip"', "Unpin Rio from Berlin", "Add Rio Grande to Berlin", 'Unpin "Rio" in "Trip"', 'Unpin "Rio" for "Trip"', 'Unpin from "Trip"', 'Unpin "Rio"',
        'Unpin all from "Trip"', 'Unpin the frame of "Rio" from "Trip"', "Seat Ana Lee in Berlin", "Seat Ana Lee to Berlin", 'Seat Ana Lee from "Gala"', "Pin A-1 with B-2", "Pin A-1 on B-2",
    )),
    # A choice tells its argument behind a new "to", and by what means something is done.
    ("Edit the site S-1 to built", ["edit_site_phase S-1 built"]), ("Haul the crate C-1 by UPS", ["haul_crate C-1 ups"]), ("Haul the crate C-1 with DHL", ["haul_crate C-1 dhl"]),
    *((text, []) for text in (
        "Edit the site S-1 to build", "Edit the owner of the site S-1 to built", "Edit the site S-1 from built", "Edit the site S-1 by built", "Edit the site S-1 to built or early", "Mark the site S-1 to built",
        "Edit the site S-1 built", "Edit the site to built", "Edit S-1 to the built", "Haul the crate C-1 by UPS or DHL", "Haul the crate C-1 by the UPS", "Haul the crate C-1 for UPS", "Haul the crate C-1 of UPS",
        "Haul the crate C-1 by Kim", "Haul the crate C-1 with the UPS label", "Haul the crate C-1 under UPS", "Haul the crate C-1 without UPS", "Haul the crate C-1 by UPS pallets", "Haul the crate C-1 by built",
    )),
    # A tool may stop something. Without a thing, the word takes orders back.
    ("Stop the belt B-1", ["halt_belt B-1"]), ("Please hold the belt B-1", ["halt_belt B-1"]), ("Put a hold on the belt B-1", ["halt_belt B-1"]),
    *((text, []) for text in (
        "Stop", "Stop it", "Stop, raze the barn B-1", "Hold on, raze the barn B-1", "Raze the barn B-1. Stop.", "Raze the barn B-1, stop", "Stop razing the barn B-1", "Stop the belt B-1 until noon", "Hold it",
        "Stop the belt B-1 if it burns", "Don't stop the belt B-1", "Stop all, then raze the barn B-1", "Hold, raze the barn B-1", "Put a stop on the belt B-1", "Put a hold over the belt B-1", "Put a hold on",
    )),
    # Words behind an order to tell may be what is told. Words before it are not.
    ("Scrap engine 12 and convey the log L-1 to Kim", ["scrap_engine 12", "convey_log L-1 Kim"]), ("Convey the log L-1 to Kim and scrap engine 12", []),
    # Two tools that fit order nothing.
    ("Polish the car C-1", ["polish_car C-1"]), ("Polish C-1", []),
    # A target that is not named is not all of them.
    ("Evict Kim", []), ("evict Kim", ["evict Kim"]), ("Evict the tenant", []),
    ("Convey the log L-1 to Kim", ["convey_log L-1 Kim"]), ("Convey my log to Kim", []), ("Convey the log of Kim L-1", []),
    # A payment needs no text, and telling does. A noun without its value, and a verb without its target, tell too little.
    ("Grease Kim 5 EUR", ["grease Kim 5"]), ("Inform the doctor Kim 'hi'", ["inform_doctor Kim hi"]), ("Convey the logs R-1 and R-2 to k@x.org", ["convey_log R-1 k@x.org", "convey_log R-2 k@x.org"]),
    *((text, []) for text in (
        "Grease Kim 5 EUR the reason", "Inform the doctor Kim", "Shoo the guests", "Convey to Kim", "Ping the nurse Kim as 'hi'", "Ping the nurse Kim 'hi' and 'ho'",
        "Convey the logs R-1 and R-2 to k@x.org and l@x.org", "Tip k@x.org and l@x.org 5 EUR", " ".join(["Wire", *(f"the port p-{n}" for n in range(8))]),
    )),
    # Words behind an order to tell, without what is told, may be what.
    ("Convey the log L-1 to Kim. Scrap engine 12.", []), ("Pack 'Milk' to the trunk T-1, scrap engine 12", []), ("Ping the nurse Kim. Scrap engine 12.", []),
    ("Ping the nurse Kim 'hi'. Scrap engine 12.", ["ping_nurse Kim hi", "scrap_engine 12"]),
    # A choice in front of a noun tells which thing is meant.
    ("Hang the sign S-1 to Rome with a large size", ["hang_sign S-1 Rome large"]),
    *((text, []) for text in ("Hang the large size sign S-1 to Rome", "Hang large size sign S-1 to Rome", "Place the large size S-1 to Rome", "Hang the sign S-1 to the large size wall Rome")),
    # A recipient, a goal and a new value stand behind "to".
    ("Loan the book B-1 to Kim", ["loan_book B-1 Kim"]), ("Reroute the bus B-1 to Rome", ["reroute_bus B-1 Rome"]), ("Retitle the page Home to Start", ["retitle_page Home Start"]),
    ("Switch the tier of the plan P-1 to 'gold'", ["switch_tier P-1 gold"]), ("Switch the tier 'gold' of the plan P-1", []), ("Switch the plan P-1 with the tier 'gold'", []),
    *((f"{order} {word} {value}", []) for word in "of for with in on at by as under".split() for order, value in (
        ("Loan the book B-1", "Kim"), ("Reroute the bus B-1", "Rome"), ("Retitle the page Home", "Start"), ("Move the job J-1", "done"), ("Switch the tier of the plan P-1", "'gold'"),
    )),
    # What is done or checked first may decide.
    ("Drain the pump P-1, then prime the pump P-2", ["drain_pump P-1", "prime_pump P-2"]),
    *((text, []) for text in (
        "Drain the pump P-1, then prime the pump P-1", "Test the pump P-1, then prime the pump P-1", "Test the pump P-1, then prime the pump P-2",
    )),
    # A capital is of a name, and a number behind a name may be of it.
    ("Raze the barn B-1 now", ["raze B-1"]), ("Tip 6 to Kim", ["tip Kim 6"]),
    *((text, []) for text in (
        "Raze the barn Shop Now", "Tip Motel 6", "Tip Kim 6", "Restock 50 Shades", "Nix the race R-1 on 3 June 27", "Raze Party", "Hedge 45 USD",
    )),
    # "To Kim" in front of a courtesy opens a letter to Kim.
    ("To Kim, tip 5 EUR", ["tip Kim 5"]), *((text, []) for text in ("To Kim, please tip 5 EUR", "To Kim and tip 5 EUR", "To Kim: tip 5 EUR")),
    # Nothing but courtesies stands before the verb or behind the order.
    *((text, []) for text in (
        "In the memo 12, tip Kim 5 EUR", "As done, move the job J-1", "As done, mark the job J-1", "Mark the job J-1 as the done", "Scrap engine 12. That worked.", "Scrap engine 12. Well done.", "Todo:\n- scrap engine 12",
        "Raze the barn B-1\n- scrap engine 12", "Open a ward called East and scrap engine 12",
    )),
    # A range is no goal, a text that is there is no new one, and a question may ask what is possible.
    ("Could you scrap the engine 12?", ["scrap_engine 12"]),
    *((text, []) for text in (
        "Retitle the pages p1 to p9", "Reroute the bus 2 to 5", "Brief Kim the text 12", "Brief Kim the text that Lee wrote", "Could you raze Rome?", "Can you discard drafts?",
    )),
])
def test_orders(text: str, expected: list[str]) -> None:
    assert orders(text) == expected


@pytest.mark.parametrize(("kind", "expected"), [("object", []), ("channel", ["wipe_email"])])
def test_a_message_is_an_email_unless_a_tool_acts_on_other_messages(kind: str, expected: list[str]) -> None:
    tools = {"wipe_email": tool("delete", "wipe", email_id="object"), "pin_message": tool("write", "pin", where=kind)}
    mandate = compile_words(["Wipe the message M-1"], {n: p for n, (p, _) in tools.items()}, {n: s for n, (_, s) in tools.items()}).mandate
    assert [s.tool for s in (mandate.steps if mandate else ())] == expected
